"""Compares two records of the same training value by value: has a change altered the numbers?"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import reading
from engine.errors import UsageError
from engine.io import did_you_mean
from reports.runs import read_metrics
from reports.tables import Column, Table

Record = Mapping[tuple[int, str], Any]
"""(step, metric) -> value, a number or None."""


@dataclass(frozen=True)
class Difference:
    """A metric that differs, at its first differing step; a value is None if its record has no number there."""

    metric: str
    step: int
    first: Any
    second: Any
    values: int
    """How many of its values differ."""
    greatest: float
    """The greatest relative difference; infinite if a record has no number."""


def read_losses(place: Path) -> Record:
    """Read the metrics of a run folder, or of a file like metrics.jsonl, without times.

    Raises: UsageError if there are none.
    """
    if place.is_dir() and not os.path.lexists(place / "metrics.jsonl"):
        raise UsageError(f"{place} has no metrics.jsonl: expected a run, or a file like its metrics.jsonl")
    lines = read_metrics(place) if place.is_dir() else iter(_lines(place))
    record = {
        (line["step"], name): value
        for line in lines
        if type(line.get("step")) is int
        for name, value in line.items()
        if name != "step" and not name.startswith("time/")
    }
    if not record:
        raise UsageError(f"{place} has no metrics: expected a run, or a file like its metrics.jsonl")
    return record


def same_file(first: Path, second: Path) -> bool:
    """Whether both name one file of metrics, which always equals itself."""
    a, b = (place / "metrics.jsonl" if place.is_dir() else place for place in (first, second))
    return a.resolve() == b.resolve()


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        with reading.open_regular(file) as stream:
            texts = stream.readlines()
    except (OSError, reading.Unreadable) as error:
        raise UsageError(
            f"{file} {reading.reason_of(error)}: expected a run, or a file like its metrics.jsonl"
        ) from None
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except (ValueError, RecursionError):
            if 1 < number == len(texts) and not text.endswith(b"\n"):
                break  # half-written: the run goes on, or was killed
            raise UsageError(f"{file} is not a file of JSON lines, as a run's metrics.jsonl is") from None
    return [line for line in lines if isinstance(line, dict)]


def require_metrics(first: Record, second: Record, *, patterns: Sequence[str]) -> None:
    """Raises: UsageError for a pattern that matches no metric of either."""
    names = {metric for _, metric in {**first, **second}}
    for one in patterns:
        if not any(re.search(one, name) for name in names):
            raise UsageError(f"--metrics {one}: neither has such a metric: {did_you_mean(one, names)}")


def compare_losses(
    first: Record, second: Record, *, tolerance: float = 0.0, absolute: float = 0.0, patterns: Sequence[str] = ()
) -> tuple[list[Difference], int]:
    """(metrics that differ, in order of their first differing step; number of values compared).

    Args:
        tolerance: relative difference that is ignored; 0 compares exactly.
        absolute: absolute difference that is ignored, for metrics that are differences of nearly equal figures.
        patterns: regular expressions; only metrics that match one are compared.
    """
    keys = [key for key in {**first, **second} if not patterns or any(re.search(one, key[1]) for one in patterns)]
    gaps: dict[str, list[tuple[int, float]]] = {}
    for key in keys:
        gap = _gap(first.get(key), second.get(key))
        near = math.isfinite(gap) and gap > 0 and abs(first[key] - second[key]) <= absolute
        if (key in first) != (key in second) or (gap > tolerance and not near):
            gaps.setdefault(key[1], []).append((key[0], gap))
    differences = [
        Difference(
            metric=metric,
            step=(step := min(steps)[0]),
            first=first.get((step, metric)),
            second=second.get((step, metric)),
            values=len(steps),
            greatest=max(gap for _, gap in steps),
        )
        for metric, steps in gaps.items()
    ]
    return sorted(differences, key=lambda one: (one.step, one.metric)), len(keys)


def _gap(a: Any, b: Any) -> float:
    """|a - b| / max(|a|, |b|); 0 for equal values (also two NaNs or nulls), infinite if only one is a number."""
    if a == b or (a != a and b != b):
        return 0.0
    if not all(isinstance(value, int | float) and abs(value) <= sys.float_info.max for value in (a, b)):
        return math.inf
    return float(abs(a - b) / max(abs(a), abs(b)))


def as_text(differences: Sequence[Difference], compared: int, tolerance: float) -> str:
    """The verdict, and a table row for each metric that differs."""
    within = f" within {tolerance:g}" if tolerance else ""
    if not differences:
        return f"equal{within}: {compared} values"
    table = Table([*map(Column, ("metric", "first at step", "A", "B", "values that differ", "greatest difference"))])
    for one in differences:
        table.add(one.metric, one.step, one.first, one.second, one.values, f"{one.greatest:.2g}")
    count = sum(one.values for one in differences)
    return f"{table.markdown()}\n{count} of {compared} values differ, first at step {differences[0].step}"
