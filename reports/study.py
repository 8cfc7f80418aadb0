"""Groups runs into the cells of an experiment: settings that differ, seeds, baselines, paired differences.

A `Study` defines which runs belong together, which settings count, and the names of cells. The base class compares any
runs by every setting that differs; an experiment with its own rules or names overrides what it needs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from engine.config import NOT_IDENTITY
from reports.naming import difference_names
from reports.runs import Run
from reports.statistics import PairedSummary, Summary, paired_difference, summarize


@dataclass
class Cell:
    """The runs of one combination of settings, by seed."""

    name: str
    settings: Mapping[str, Any]
    """Dotted key -> value."""
    runs: dict[int, Run] = field(default_factory=dict)

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> metric."""
        return {seed: run.results[metric] for seed, run in sorted(self.runs.items())}


class Comparison(TypedDict):
    """The comparison of one metric of a cell."""

    seeds: dict[int, float]
    score: Summary
    difference: PairedSummary | None
    """Cell minus its baseline, paired by seed; None for a baseline, or a cell without one."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment over any runs.

    Args:
        baseline: settings of baselines (dotted key -> value; None for an absent key or block). A cell's baseline is the
            cell that has these and agrees with it in every other setting.
        ignored: top-level config keys that do not distinguish experiments, such as labels and devices.
    """

    baseline: Mapping[str, Any] = field(default_factory=dict)
    ignored: Collection[str] = frozenset(NOT_IDENTITY)
    expected: str = "run"
    no_baseline: str = "there is no run with the baseline's settings: no difference from it can be given"

    def check(self, path: Path, config: Mapping[str, Any]) -> None:
        """Raise UsageError for a run of another experiment; the base class accepts every run."""

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The leaves of a resolved config that define the experiment, without the seed."""
        return dict(leaves({name: value for name, value in config.items() if name not in {*self.ignored, "seed"}}))

    def is_factor(self, key: str) -> bool:
        """Whether a setting is studied: cells may differ in it from their baseline."""
        return any(_is_at_or_below(key, studied) for studied in self.baseline)

    def is_baseline(self, settings: Mapping[str, Any]) -> bool:
        return bool(self.baseline) and all(_has(settings, key, value) for key, value in self.baseline.items())

    def names(self, settings: Sequence[Mapping[str, Any]]) -> list[str]:
        """The name of each run's cell, unique for its settings; by default all settings that differ, e.g.
        `lr=0.1, no encoder`."""
        return difference_names(settings)

    def rank(self, cell: Cell) -> int:
        """Cells are listed by rank, then by name."""
        return 0 if self.is_baseline(cell.settings) else 1

    def baseline_of(self, cell: Cell, cells: Sequence[Cell]) -> Cell | None:
        """The baseline that agrees with `cell` in all settings that are not studied; None for a baseline itself."""
        if self.is_baseline(cell.settings):
            return None
        others = self._not_studied(cell.settings)
        same = (one for one in cells if self.is_baseline(one.settings) and self._not_studied(one.settings) == others)
        return next(same, None)

    def _not_studied(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if not self.is_factor(key)}


def _is_at_or_below(key: str, block: str) -> bool:
    return key == block or key.startswith(f"{block}.")


def _has(settings: Mapping[str, Any], key: str, value: Any) -> bool:
    if value is None:
        return not any(_is_at_or_below(name, key) for name in settings)
    return bool(settings.get(key) == _hashable(value))


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a nested mapping, with lists as tuples. Null keys count as absent."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", _hashable(value)


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((str(key), _hashable(inner)) for key, inner in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def natural_key(value: Any) -> list[Any]:
    """A sort key that puts `period 8` before `period 16`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(value))
    return [(1, float(part)) if number % 2 else (0, part) for number, part in enumerate(parts)]


def group(runs: Sequence[Run], study: Study) -> tuple[list[Cell], list[str]]:
    """The cells of a study in order, and a warning for each repeated seed of a cell, whose newer run is used."""
    settings = [study.settings(run.config) for run in runs]
    cells: dict[str, Cell] = {}
    same: dict[tuple[str, int], list[Run]] = {}
    for run, own, name in zip(runs, settings, study.names(settings), strict=True):
        cells.setdefault(name, Cell(name, own))
        same.setdefault((name, run.seed), []).append(run)
    warnings = []
    for (name, seed), repeated in same.items():
        if len(repeated) > 1:
            repeated.sort(key=lambda one: (one.path / "summary.json").stat().st_mtime)
        *older, newest = repeated
        cells[name].runs[seed] = newest
        if len(older) == 1:
            warnings.append(f"{name} has seed {seed} twice: {newest.path} counts, the older {older[0].path} does not")
        elif older:
            others = f"{len(older)} older ones do not (e.g. {older[-1].path})"
            warnings.append(f"{name} has seed {seed} {len(repeated)} times: {newest.path} counts, {others}")
    return sorted(cells.values(), key=lambda cell: (study.rank(cell), natural_key(cell.name))), warnings


def compare(cells: Sequence[Cell], metric: str, study: Study) -> dict[str, Comparison]:
    """Name of each cell -> its scores, and their differences from its baseline."""
    compared: dict[str, Comparison] = {}
    for cell in cells:
        values, base = cell.values(metric), study.baseline_of(cell, cells)
        difference = None if base is None else paired_difference(values, base.values(metric))
        compared[cell.name] = {"seeds": values, "score": summarize(list(values.values())), "difference": difference}
    return compared


def comparison_warnings(cells: Sequence[Cell], study: Study) -> list[str]:
    """Warnings about differences that make the cells hard to compare, one line each."""
    warnings = []
    runs = [run for cell in cells for run in cell.runs.values()]
    usual_steps = Counter(run.step for run in runs).most_common(1)[0][0]
    usual_data = Counter(run.data for run in runs).most_common(1)[0][0]
    seeds = sorted({run.seed for run in runs})
    has_baseline = any(study.is_baseline(cell.settings) for cell in cells)
    if not has_baseline:
        warnings.append(study.no_baseline)
    for cell in cells:
        if missing := [seed for seed in seeds if seed not in cell.runs]:
            warnings.append(f"{cell.name} has no run of seed {_join(missing)}: left out where it is compared")
        if len(cell.runs) == 1:
            warnings.append(f"{cell.name} has one seed: no interval can be given")
        if other_steps := sorted({run.step for run in cell.runs.values()} - {usual_steps}):
            warnings.append(f"{cell.name} has runs of {_join(other_steps)} steps, most others have {usual_steps}")
        if other_data := [run for run in cell.runs.values() if run.data != usual_data]:
            warnings.append(f"{cell.name} has runs on other data than most (the first: {other_data[0].path})")
        if stand_in := [run for run in cell.runs.values() if run.stand_in]:
            warnings.append(f"{cell.name} has runs on stand-in data (stand_in: true; the first: {stand_in[0].path})")
        if has_baseline and not study.is_baseline(cell.settings) and study.baseline_of(cell, cells) is None:
            warnings.append(f"{cell.name} has no baseline of its other settings: no difference is given")
    return warnings


def _join(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
