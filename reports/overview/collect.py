"""Collects the contents of a report on any runs: runs, finished or not, their cells, and differences between cells.

A cell has the runs that differ only in the seed. One cell is the reference, with which the others are compared over the
seeds that both have.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from engine.errors import UsageError
from engine.io import did_you_mean
from engine.run.files import read_json, read_yaml
from reports.naming import as_text, difference_names
from reports.runs import Run, curves, data_cards, is_run_folder, read_run, run_folders_below
from reports.study import Cell, Comparison, Study, compare, comparison_warnings, group, leaves

LONGEST = 80
"""Most characters of a cell's name; if more settings differ, the table of settings shows them."""


@dataclass(frozen=True)
class RunView:
    """A run as read from its folder, finished or not."""

    path: Path
    name: str
    config: Mapping[str, Any]
    """The config as resolved at its start."""
    entry: str
    """Its entry script."""
    settings: Mapping[str, Any]
    """Dotted key -> value of the settings that define the experiment, without the seed."""
    curves: Mapping[str, list[tuple[int, float]]]
    """Metric -> (step, value)."""
    status: Mapping[str, Any]
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    finished: Run | None = None
    """The run with its final evaluation; None if it has none yet."""

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def state(self) -> str:
        return str(self.status.get("state", "unknown"))

    def typical(self, metric: str) -> float | None:
        """The median of a metric over the run's metrics.jsonl."""
        points = self.curves.get(metric)
        return median(value for _, value in points) if points else None

    @property
    def data(self) -> list[Mapping[str, Any]]:
        """Cards of its data sets."""
        return data_cards(self.environment)

    @property
    def stand_in(self) -> bool:
        """Whether stand-in data replaced some of the data that its config names."""
        return any(card.get("stand_in") for card in self.data)


@dataclass(frozen=True, kw_only=True)
class OverviewStudy(Study):
    """Cells by all settings that differ, all compared with one reference cell."""

    no_baseline: str = "no cell to compare with has a final evaluation"
    known: Mapping[str, str] = field(default_factory=dict)
    """Settings, as text by `key_of`, -> name of the cell, including cells of unfinished runs."""
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Path of a run -> its settings."""
    reference: str = ""

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self.own[config["_path"]])

    def names(self, settings: Sequence[Mapping[str, Any]]) -> list[str]:
        return [self.known[key_of(each)] for each in settings]

    def is_baseline(self, settings: Mapping[str, Any]) -> bool:
        return self.known.get(key_of(settings)) == self.reference

    def baseline_of(self, cell: Cell, cells: Sequence[Cell]) -> Cell | None:
        return None if cell.name == self.reference else next((c for c in cells if c.name == self.reference), None)


@dataclass(frozen=True)
class Overview:
    """The contents of a report."""

    runs: Sequence[RunView]
    cell_names: Sequence[str]
    """The cell of each run."""
    metric: str | None
    goal: str
    """`max` or `min`: which way the metric is better."""
    reference: str
    cells: Sequence[Cell]
    """Cells with finished runs, the reference first."""
    compared: Mapping[str, Comparison]
    notes: Sequence[str]
    """Notes on runs that were left out, and on differences that make cells hard to compare."""

    @property
    def names(self) -> list[str]:
        """Names of all cells: those of finished runs in the order of comparison, then the others."""
        return list(dict.fromkeys([*(cell.name for cell in self.cells), *self.cell_names]))

    @property
    def cell_numbers(self) -> list[int]:
        """The index in `names` of each run's cell."""
        names = self.names
        return [names.index(name) for name in self.cell_names]

    @property
    def better(self) -> str:
        """`higher` or `lower`: which values of the metric are better."""
        return "higher" if self.goal == "max" else "lower"


def key_of(settings: Mapping[str, Any]) -> str:
    """Settings as text, the same for equal settings."""
    return repr(sorted(settings.items()))


def collect(places: Sequence[Path], *, metric: str | None = None, baseline: str | None = None) -> Overview:
    """Read the runs at `places`: run folders, folders of them, folders of sweeps.

    Args:
        metric: the metric of the comparison; default: the figure that most runs report at their end.
        baseline: the run or cell with which others are compared; default: the first.

    Raises:
        UsageError: a place does not exist or has no run, no run has `metric`, or `baseline` is none of them.
    """
    folders = _folders(places)
    read = [(folder, view) for folder in folders for view in [_read(folder, folders)]]
    notes = [f"left out: {folder} has no readable config.resolved.yaml" for folder, view in read if view is None]
    views = [view for _, view in read if view is not None]
    if not views:
        raise UsageError("; ".join(["no run with a readable config", *notes[:3]]))
    metric, goal = _metric(views, metric)
    cell_names = _cell_names(views)
    views, unfinished = _finish(views, metric)
    reference = _reference(views, cell_names, baseline)
    study = OverviewStudy(
        known={key_of(view.settings): name for view, name in zip(views, cell_names, strict=True)},
        own={str(view.path): view.settings for view in views},
        reference=reference,
    )
    cells, twice = group([view.finished for view in views if view.finished], study)
    compared = compare(cells, metric, study) if metric else {}
    if cells:
        notes += [*unfinished, *twice, *comparison_warnings(cells, study)] if len(views) > 1 else unfinished
    alone = len(views) == 1  # comparison_warnings reports it for finished runs that are compared
    if stand_in := [view.name for view in views if view.stand_in and (alone or not view.finished)]:
        notes.append(f"on stand-in data (stand_in: true): {', '.join(stand_in)}")
    return Overview(views, cell_names, metric, goal, reference, cells, compared, notes)


def _folders(places: Sequence[Path]) -> list[Path]:
    folders: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise UsageError(
                f"{place} is not a folder: expected a run, e.g. checkpoints/PROJECT/RUN, a folder of runs or of a sweep"
            )
        inside = [place] if is_run_folder(place) else run_folders_below(place)
        if not inside:
            raise UsageError(f"{place} has no run in it")
        for folder in inside:
            folders.setdefault(folder.resolve(), folder)
    return list(folders)


def _read(path: Path, folders: Sequence[Path]) -> RunView | None:
    config = read_yaml(path / "config.resolved.yaml")
    if "seed" not in config:
        return None
    common = path.absolute().parent if len(folders) == 1 else os.path.commonpath([one.absolute() for one in folders])
    name = os.path.relpath(path.absolute(), common)
    stored = read_json(path / "identity.json")
    identity = stored.get("config")
    settings = dict(leaves(identity)) if isinstance(identity, dict) else Study().settings(config)
    settings.pop("seed", None)
    return RunView(
        path,
        path.name if name == "." else name,
        {**config, "_path": str(path)},
        str(stored.get("entry", "")),
        settings,
        curves(path),
        read_json(path / "status.json"),
        read_json(path / "summary.json"),
        read_json(path / "environment.json"),
    )


def _cell_names(views: Sequence[RunView]) -> list[str]:
    """The name of each run's cell: the settings that differ among the runs of its script, or the name of its first run
    if they are longer than `LONGEST`."""
    names: dict[Path, str] = {}
    entries = dict.fromkeys(view.entry for view in views)
    for entry in entries:
        own = [view for view in views if view.entry == entry]
        first: dict[str, str] = {}
        for view, name in zip(own, difference_names([view.settings for view in own]), strict=True):
            short = first.setdefault(name, view.name if len(name) > LONGEST else name)
            names[view.path] = f"{entry}: {short}" if len(entries) > 1 else short
    return [names[view.path] for view in views]


def _metric(views: Sequence[RunView], requested: str | None) -> tuple[str | None, str]:
    """The metric and its better direction. A run that has both selects by `val/x` and reports `eval/x`."""
    results = [view.summary["results"] for view in views if isinstance(view.summary.get("results"), dict)]
    known = {name for each in results for name in each}
    named = Counter((str(v.summary["name"]), str(v.summary.get("goal"))) for v in views if "name" in v.summary)
    if requested is not None:
        name = requested if requested in known else f"eval/{requested}"
        if name not in known:
            raise UsageError(f"--metric {requested}: no run ended with it: {did_you_mean(requested, sorted(known))}")
        last = name.rpartition("/")[2]
        goals = [goal for (one, goal) in named if one.rpartition("/")[2] == last]
        return name, goals[0] if goals else "min" if "loss" in last else "max"
    if not named:
        return None, "max"
    (name, goal), _ = named.most_common(1)[0]
    reported = "eval/" + name.partition("/")[2]
    return (reported if reported in known else name), goal


def _finish(views: Sequence[RunView], metric: str | None) -> tuple[list[RunView], list[str]]:
    """The runs with their final results if they have them, and a note for each that has none."""
    done, left = [], []
    for view in views:
        try:
            if metric is None:
                raise UsageError(f"{view.path} is not finished ({view.state}, step {view.status.get('step')})")
            run = read_run(view.path, metric, Study())
            done.append(replace(view, finished=replace(run, config=view.config)))
        except UsageError as error:
            done.append(view)
            left.append(f"not compared: {error}")
    return done, left


def _reference(views: Sequence[RunView], cell_names: Sequence[str], baseline: str | None) -> str:
    if baseline is None:
        ended = (name for view, name in zip(views, cell_names, strict=True) if view.finished)
        return next(ended, cell_names[0])
    for view, name in zip(views, cell_names, strict=True):
        if baseline in (name, view.name, str(view.path)) or Path(baseline).absolute() == view.path.absolute():
            return name
    choices = dict.fromkeys([*(view.name for view in views), *cell_names])
    hint = did_you_mean(baseline, choices)
    raise UsageError(f"--baseline {baseline}: expected a run or a cell of this report: {hint}")


def differing(overview: Overview) -> dict[str, dict[str, str]]:
    """Key -> cell -> value as text, for the keys that differ between cells; absent ones are `null`.

    If the runs are of several scripts, only keys that all of them have are compared.
    """
    settings = dict(zip(overview.cell_names, (run.settings for run in overview.runs), strict=True))
    of_script: dict[str, set[str]] = {}
    for run in overview.runs:
        of_script.setdefault(run.entry, set()).update(run.settings)
    keys = sorted(set.intersection(*of_script.values()))
    table = {key: {cell: as_text(settings[cell].get(key)) for cell in overview.names} for key in keys}
    return {key: row for key, row in table.items() if len(set(row.values())) > 1}
