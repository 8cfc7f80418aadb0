"""Runs of HRM with and without a manager, read from their folders and sorted into the cells of an ablation."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import reading
from engine.errors import UsageError
from engine.run.files import data_hashes, read_yaml
from engine.run.rundir import is_finished, read_json
from tasks.recursive_reasoning.args import PretrainConfig

BASELINE, FULL = "baseline", "feudal"
MODELS = ("HRM", "HRMFeudal")
HEAD, WEIGHT = "arch.subgoal_head", "arch.loss.feudal_loss_weight"
_OF_THE_HEAD = (f"{HEAD}.", "arch.loss.feudal_")
_FIXED = {f"{HEAD}.inject_subgoal": True, f"{HEAD}.goal_source": "learned", f"{HEAD}.gating": True}
_TIED = {WEIGHT: 0.1, f"{HEAD}.manager_period": 4}
"""A cell is called feudal if it has the fixed values and of other keys the commonest one; among equals, this one."""
_NAMES = {
    f"{WEIGHT}=0": "no loss", f"{HEAD}.inject_subgoal=False": "no injection", f"{HEAD}.gating=False": "no gate",
    f"{HEAD}.goal_source=random": "random goals", f"{HEAD}.goal_source=zero": "zero goals",
}  # fmt: skip
_SHORT = {WEIGHT: "weight", f"{HEAD}.manager_period": "period"}


@dataclass(frozen=True)
class Run:
    """A finished run. `keys` are the leaves of its config that make it the experiment it is, without the seed."""

    path: Path
    seed: int
    step: int
    results: Mapping[str, float]
    """`eval/...` of its final evaluation."""
    data: tuple[str, ...]
    """Content hashes of its data sets."""
    keys: Mapping[str, Any]

    @property
    def has_head(self) -> bool:
        return f"{HEAD}.manager_period" in self.keys


@dataclass
class Cell:
    """The runs of one setting by seed."""

    name: str
    keys: Mapping[str, Any]
    runs: dict[int, Run] = field(default_factory=dict)

    @property
    def has_head(self) -> bool:
        return next(iter(self.runs.values())).has_head

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> metric."""
        return {seed: run.results[metric] for seed, run in sorted(self.runs.items())}


# --- reading ----------------------------------------------------------------------------------------------------------


def find_runs(places: Sequence[Path], metric: str) -> tuple[list[Run], list[str]]:
    """The runs at `places`, which are run folders, folders of them, or the folder of a `-m` sweep; and warnings.

    Raises:
        UsageError: no such place, a run named itself that cannot be used, or no usable run at all.
    """
    runs: dict[Path, Run] = {}
    left_out: list[str] = []
    for place in places:
        if not place.is_dir():
            raise UsageError(f"{place} is no folder: expected a run, e.g. checkpoints/PROJECT/RUN, or a folder of runs")
        if _is_run(place):
            runs[place.resolve()] = read_run(place, metric)
            continue
        for folder in _runs_below(place):
            try:
                runs.setdefault(folder.resolve(), read_run(folder, metric))
            except UsageError as error:
                left_out.append(f"left out: {error}")
    if not runs:
        where = ", ".join(map(str, places))
        raise UsageError("; ".join([f"no run of HRM with a final evaluation in {where}", *left_out[:3]]))
    return list(runs.values()), left_out


def _is_run(folder: Path) -> bool:
    return (folder / "config.resolved.yaml").is_file() or (folder / "status.json").is_file()


def _runs_below(place: Path) -> list[Path]:
    jobs = place / "results.json"
    if jobs.is_file() and (place / "results.csv").is_file():  # multirun/DATE_TIME: its runs lie elsewhere
        try:
            listed = reading.read_json(jobs)
        except (OSError, reading.Unreadable) as error:
            raise UsageError(f"{jobs} {reading.reason_of(error)}") from None
        rows = [job for job in listed if isinstance(job, dict)] if isinstance(listed, list) else []
        found = [Path(job["run_dir"]) for job in rows if isinstance(job.get("run_dir"), str)]
        return [folder for folder in found if folder.is_dir()]
    found = []
    for folder, inner, _ in os.walk(place):
        if _is_run(Path(folder)):
            inner.clear()
            found.append(Path(folder))
    return sorted(found)


def read_run(path: Path, metric: str) -> Run:
    """One run folder. Raises UsageError for one that is unfinished, of another model, or without `eval/METRIC`."""
    try:
        config = read_yaml(path / "config.resolved.yaml")
        model = str(config["arch"]["name"]).partition("@")[2]
        seed = int(config["seed"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UsageError(f"{path} has no readable config of pretrain.py (config.resolved.yaml)") from None
    if model not in MODELS:
        raise UsageError(f"{path} is a run of {model}: expected HRM (arch=hrm_feudal or arch=hrm)")
    if not is_finished(path):
        status = read_json(path / "status.json")
        state, step = status.get("state", "without status.json"), status.get("step")
        raise UsageError(f"{path} is not finished ({state}, step {step}): give its command again, it goes on")
    summary = read_json(path / "summary.json")
    stored = summary.get("results")
    pairs = stored.items() if isinstance(stored, dict) else ()
    results = {name: float(v) for name, v in pairs if type(v) is int or (type(v) is float and math.isfinite(v))}
    step = summary.get("step") or 0
    if metric not in results or type(step) is not int:
        raise UsageError(f"{path} has no final evaluation with {metric} (summary.json): train it with final_eval=true")
    data = tuple(sorted(data_hashes(path).values()))
    return Run(path, seed, step, results, data, _keys(config))


def _keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a resolved config that count: without labels and launch settings, without what follows from others
    or, where there is no head, does nothing. A key that is null is left out, like one that an architecture lacks."""
    dropped = {*PretrainConfig.NOT_IDENTITY, "seed", "loss", "data_paths", "data_paths_test"}
    leaves = dict(_leaves({name: value for name, value in config.items() if name not in dropped}))
    head = f"{HEAD}.manager_period" in leaves
    for name in ("arch.name", "arch.loss.name", f"{HEAD}.hidden_size"):
        leaves.pop(name, None)
    if leaves.get(f"{HEAD}.goal_dim") == leaves.get("arch.hidden_size"):
        leaves.pop(f"{HEAD}.goal_dim", None)
    return {name: value for name, value in leaves.items() if head or not name.startswith(_OF_THE_HEAD)}


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", tuple(value) if isinstance(value, list) else value


# --- sorting ----------------------------------------------------------------------------------------------------------


def group(runs: Sequence[Run]) -> tuple[list[Cell], list[str]]:
    """Cells named by what differs between the runs, the baseline first; and warnings about doubles."""
    usual = _usual(runs)
    cells: dict[str, Cell] = {}
    warnings = []
    for run in runs:
        name = _name(run, usual)
        cell = cells.setdefault(name, Cell(name, run.keys))
        other = cell.runs.get(run.seed)
        if other is not None:
            older, run = sorted((other, run), key=lambda one: (one.path / "summary.json").stat().st_mtime)
            warnings.append(f"{name} has seed {run.seed} twice: {run.path} counts, the older {older.path} does not")
        cell.runs[run.seed] = run
    order = {BASELINE: 0, FULL: 1}
    return sorted(cells.values(), key=lambda cell: (order.get(cell.name, 2), _natural(cell.name))), warnings


def _usual(runs: Sequence[Run]) -> dict[str, Any]:
    """For each key that differs, the value that needs no mention; keys of the head are judged among runs with one."""
    usual: dict[str, Any] = {}
    for key in sorted({key for run in runs for key in run.keys}):
        of_head = key.startswith(_OF_THE_HEAD)
        values = [run.keys.get(key) for run in runs if run.has_head or not of_head]
        counts = Counter(value for value in values if not (key == WEIGHT and value == 0))
        top = [value for value in counts if counts[value] == max(counts.values())]
        tied = _TIED.get(key)
        usual[key] = _FIXED.get(key, tied if tied in top or not top else min(top, key=_natural))
    return usual


def _name(run: Run, usual: Mapping[str, Any]) -> str:
    words = []
    for key in sorted(usual, key=lambda key: (not key.startswith(_OF_THE_HEAD), key)):
        value = run.keys.get(key)
        if (key.startswith(_OF_THE_HEAD) and not run.has_head) or value == usual[key]:
            continue
        text = "null" if value is None else list(value) if isinstance(value, tuple) else value
        plain = f"{value:g}" if isinstance(value, float) else str(value)
        last = _SHORT.get(key, key.rpartition(".")[2])
        sign = " " if key.startswith(_OF_THE_HEAD) else "="
        words.append(_NAMES.get(f"{key}={plain}", f"{last}{sign}{text}"))
    if not run.has_head:
        return ", ".join([BASELINE, *words])
    outer = [word for word in words if "=" in word]
    inner = [word for word in words if "=" not in word]
    return ", ".join([*(inner or [FULL]), *outer])


def _natural(value: Any) -> list[Any]:
    """A key that sorts `period 8` before `period 16`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(value))
    return [(1, float(part)) if number % 2 else (0, part) for number, part in enumerate(parts)]


def baseline_of(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The cell without a head that has this one's other settings."""
    outer = {key: value for key, value in cell.keys.items() if not key.startswith(_OF_THE_HEAD)}
    return next((one for one in cells if not one.has_head and dict(one.keys) == outer), None)


def warnings_of(cells: Sequence[Cell], metric: str) -> list[str]:
    """One line for each thing that makes the cells hard to compare."""
    lines = []
    runs = [run for cell in cells for run in cell.runs.values()]
    steps = Counter(run.step for run in runs).most_common(1)[0][0]
    data = Counter(run.data for run in runs).most_common(1)[0][0]
    seeds = sorted({run.seed for run in runs})
    if not any(not cell.has_head for cell in cells):
        lines.append("there is no run without a head (~arch.subgoal_head): no difference from a baseline can be given")
    for cell in cells:
        missing = [seed for seed in seeds if seed not in cell.runs]
        if missing:
            lines.append(f"{cell.name} has no run of seed {_join(missing)}: left out where it is compared")
        if len(cell.runs) == 1:
            lines.append(f"{cell.name} has one seed: no interval can be given")
        if other := sorted({run.step for run in cell.runs.values()} - {steps}):
            lines.append(f"{cell.name} has runs of {_join(other)} steps, most others have {steps}")
        if other_data := [run for run in cell.runs.values() if run.data != data]:
            lines.append(f"{cell.name} has runs on other data than most (the first: {other_data[0].path})")
        if cell.has_head and baseline_of(cell, cells) is None and any(not one.has_head for one in cells):
            lines.append(f"{cell.name} has no baseline of its other settings: no difference is given")
    if metric == "eval/exact_accuracy" and all(run.results[metric] == 0 for run in runs):
        lines.append("exact accuracy is 0 everywhere: --metric accuracy tells more")
    elif "accuracy" in metric and all(run.results[metric] > 0.98 for run in runs):
        lines.append("every run is above 0.98: nothing is left to gain, take harder data or fewer steps")
    return lines


def _join(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
