"""Reads runs from their folders: config, final results, data, and the curve of a metric.

A folder may be half-written, damaged or of something else: unusable ones are reported in one line, without traceback.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine import reading
from engine.errors import UsageError
from engine.run.files import is_finished, read_json, read_yaml

LARGEST = 1e100
"""Larger figures are of diverged runs, and would overflow means and deviations."""


@dataclass(frozen=True)
class Run:
    """A finished run with its final evaluation."""

    path: Path
    seed: int
    step: int
    results: Mapping[str, float]
    """`eval/...` of the final evaluation, without NaN, infinite and absurd values."""
    data: tuple[str, ...]
    """Content hashes of its data sets."""
    config: Mapping[str, Any]
    """The config as resolved at its start."""
    stand_in: bool = False
    """Whether its data are a stand-in, so that its figures are not those of the data it names."""


class RunFilter(Protocol):
    """Decides by its config whether `find_runs` uses a run."""

    @property
    def expected(self) -> str:
        """Description of the runs for messages: `run of HRM`."""

    def check(self, path: Path, config: Mapping[str, Any]) -> None:
        """Raise UsageError for a run of another kind."""


def find_runs(places: Sequence[Path], metric: str, study: RunFilter) -> tuple[list[Run], list[str]]:
    """The runs at `places` (run folders, folders of them, or the folder of a `-m` sweep), and notes on those left out.

    Raises:
        UsageError: a place does not exist, a run given directly cannot be used, or there is no usable run.
    """
    runs: dict[Path, Run] = {}
    left_out: list[str] = []
    for place in places:
        if not place.is_dir():
            raise UsageError(
                f"{place} is not a folder: expected a run, e.g. checkpoints/PROJECT/RUN, or a folder of runs"
            )
        if is_run_folder(place):
            runs[place.resolve()] = read_run(place, metric, study)
            continue
        for folder in run_folders_below(place):
            try:
                runs.setdefault(folder.resolve(), read_run(folder, metric, study))
            except UsageError as error:
                left_out.append(f"left out: {error}")
    if not runs:
        where = ", ".join(map(str, places))
        raise UsageError("; ".join([f"no {study.expected} with a final evaluation in {where}", *left_out[:3]]))
    return list(runs.values()), left_out


def is_run_folder(folder: Path) -> bool:
    return (folder / "config.resolved.yaml").is_file() or (folder / "status.json").is_file()


def run_folders_below(place: Path) -> list[Path]:
    """Run folders at any depth, sorted; for the folder of a sweep (multirun/DATE_TIME), those of its jobs."""
    jobs = place / "results.json"
    if jobs.is_file() and (place / "results.csv").is_file():
        try:
            listed = reading.read_json(jobs)
        except (OSError, reading.Unreadable) as error:
            raise UsageError(f"{jobs} {reading.reason_of(error)}") from None
        rows = [job for job in listed if isinstance(job, dict)] if isinstance(listed, list) else []
        written = [Path(job["run_dir"]) for job in rows if isinstance(job.get("run_dir"), str)]
        if gone := [folder for folder in written if not folder.is_dir()]:
            sys.stderr.write(
                f"warning: {len(gone)} of the {len(written)} run folders in {jobs} do not exist (e.g. {gone[0]}; "
                "relative ones are relative to the folder of the sweep's command)\n"
            )
        return [folder for folder in written if folder.is_dir()]
    folders = []
    for folder, inner, _ in os.walk(place):
        if is_run_folder(Path(folder)):
            inner.clear()
            folders.append(Path(folder))
    return sorted(folders)


def read_run(path: Path, metric: str, study: RunFilter) -> Run:
    """Read a run folder.

    Raises:
        UsageError: it is damaged, unfinished or of another kind, or its final evaluation has no usable `metric`.
    """
    config = read_yaml(path / "config.resolved.yaml")
    try:
        seed = int(config["seed"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UsageError(f"{path} has no readable config with a seed (config.resolved.yaml)") from None
    study.check(path, config)
    if not is_finished(path):
        status = read_json(path / "status.json")
        state, step = status.get("state", "without status.json"), status.get("step")
        raise UsageError(f"{path} is not finished ({state}, step {step}): run its command again to resume it")
    summary = read_json(path / "summary.json")
    stored = summary.get("results")
    stored = stored if isinstance(stored, dict) else {}
    results = {name: float(value) for name, value in stored.items() if _is_usable(value)}
    step = summary.get("step") or 0
    if type(step) is int and metric not in stored and results:
        others = ", ".join(sorted(results)[:3]) + ", ..." * (len(results) > 3)
        raise UsageError(f"{path}: its final evaluation has no {metric}, but {others} (summary.json)")
    if type(step) is not int or metric not in stored:
        raise UsageError(f"{path} has no final evaluation with {metric} (summary.json): train it with final_eval=true")
    if metric not in results:
        raise UsageError(
            f"{path} ended with {metric}={json.dumps(stored[metric])[:40]}: expected a number below {LARGEST:g}"
        )
    data = tuple(sorted(_data_hashes(path).values()))
    return Run(path, seed, step, results, data, config, stand_in=summary.get("stand_in") is True)


def data_cards(environment: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The cards of a run's data sets in its environment.json."""
    cards = environment.get("data_cards")
    return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []


def _data_hashes(run_dir: Path) -> dict[str, str]:
    """Path -> content hash of the data sets at the start of the run (environment.json)."""
    cards = data_cards(read_json(run_dir / "environment.json"))
    pairs = [(card.get("path"), card.get("content_hash")) for card in cards]
    return {path: digest for path, digest in pairs if isinstance(path, str) and isinstance(digest, str)}


def _is_usable(value: Any) -> bool:
    """Whether a JSON value is a number (not a boolean) that can be squared and summed."""
    return type(value) in (int, float) and abs(value) < LARGEST  # false for NaN


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics.jsonl in order. Damaged lines are skipped, with a warning for each file; the last
    line may be half-written.

    Raises:
        UsageError: there is no such file, or it cannot be read.
    """
    file, damaged = path / "metrics.jsonl", 0
    try:
        with reading.open_regular(file) as stream:
            for line in stream:
                try:
                    values = json.loads(line)
                except (ValueError, RecursionError):
                    values = None
                if isinstance(values, dict):
                    yield values
                else:
                    damaged += line.endswith(b"\n")
    except (OSError, reading.Unreadable) as error:
        raise UsageError(f"{file} {reading.reason_of(error)}") from None
    if damaged:
        _warn_of_damage(file, damaged)


@functools.cache
def _warn_of_damage(file: Path, lines: int) -> None:
    """Once, though a report reads a file for each metric; stdout may be a result in JSON."""
    sys.stderr.write(f"warning: {file}: {lines} damaged line(s) left out\n")


def curve(path: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of all usable values of `metric`. Raises: UsageError as `read_metrics`."""
    lines = ((line.get("step"), line.get(metric, math.nan)) for line in read_metrics(path))
    return [
        (step, float(value)) for step, value in lines if type(step) is int and _is_usable(step) and _is_usable(value)
    ]


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run with its `curve`, read in one pass; {} if the run wrote none."""
    curves: dict[str, list[tuple[int, float]]] = {}
    try:
        for line in read_metrics(path):
            if type(step := line.pop("step", None)) is int and _is_usable(step):
                for name, value in line.items():
                    if _is_usable(value):
                        curves.setdefault(name, []).append((step, float(value)))
    except UsageError:
        pass  # a run that has just started
    return curves


def first_step(points: Iterable[tuple[int, float]], reached: float, *, higher_is_better: bool = True) -> int | None:
    """The first step of a curve at which the metric is at least as good as `reached`; None if there is none."""
    sign = 1 if higher_is_better else -1
    return next((step for step, value in points if sign * value >= sign * reached), None)
