"""The goal measurements of a cell, summarised over its runs, and a verdict on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from reports.statistics import Summary, summarize
from reports.study import Cell
from tasks.recursive_reasoning.feudal_report.goals import SOURCES

CONTROL, DIRECTIONS, GATE, ALIKE = 0.1, 2.0, 0.05, 0.9
"""Thresholds of `reading`: least controllability, participation ratio and gate of a manager that is used; and the
cosine between goals of different examples above which they count as one goal."""


class CellGoals(TypedDict):
    """Goal measurements of a cell. Summaries are over seeds, or over examples if there is one seed."""

    control: Summary
    """Cosine between the worker's displacement and the foreign goal it was given, minus that with its own goal."""
    cos: Summary
    cos_random: Summary
    content: Summary
    """Score lost when goals are exchanged between examples."""
    presence: Summary
    """Score lost when goals are removed."""
    alike: float | None
    pr: float | None
    """Participation ratio of the goals: their effective number of directions."""
    gate: float | None
    changed: dict[str, float | None]
    """Source of goals -> share of scored positions whose prediction changes."""
    scores: dict[str, Summary]
    word: str
    reason: str


def goals_of_cell(cell: Cell, measured: Mapping[Path, Mapping[str, Any]], metric: str) -> CellGoals | None:
    """Summarise the measurements of a cell's runs; None if no run was measured."""
    runs = [measured[run.path] for run in cell.runs.values() if run.path in measured]
    if not runs:
        return None
    control = summarize([_cosine(run["shuffle"], "") - _cosine(run["shuffle"], "_own") for run in runs])
    content, presence = (_lost([run[source]["drop"][metric] for run in runs]) for source in ("shuffle", "zero"))
    alike = _mean([run["same"]["goal_alike"] for run in runs])
    directions = _mean([run["same"]["goal_pr"] for run in runs])
    gate = _mean([run["same"]["subgoal_gate_mean"] for run in runs])
    word, reason = reading(control, content, presence, directions=directions, gate=gate, alike=alike)
    return {
        "control": control,
        "cos": summarize([_cosine(run["same"], "") for run in runs]),
        "cos_random": summarize([_cosine(run["random"], "") for run in runs]),
        "content": content,
        "presence": presence,
        "alike": alike,
        "pr": directions,
        "gate": gate,
        "changed": {source: _mean([run[source]["changed"] for run in runs]) for source in SOURCES},
        "scores": {source: summarize([run[source][metric] for run in runs]) for source in SOURCES},
        "word": word,
        "reason": reason,
    }


def _lost(drops: Sequence[tuple[float, float]]) -> Summary:
    """Summarise (mean, standard error over examples) of each run."""
    lost = summarize([mean for mean, _ in drops])
    if len(drops) == 1:
        mean, se = drops[0]
        lost["se"], lost["t"] = se, (mean - 1.96 * se, mean + 1.96 * se)
    return lost


def reading(
    control: Summary,
    content: Summary,
    presence: Summary,
    *,
    directions: float | None,
    gate: float | None,
    alike: float | None,
) -> tuple[str, str]:
    """(verdict, reason) for a manager with these measurements.

    used: the worker follows a foreign goal (control > 0.1), the score falls by more than two standard errors when goals
    are exchanged, goals fill at least two directions, and the gate is open. constant bias: the score falls when goals
    are removed but not when they are exchanged. obeyed but irrelevant: followed, and neither costs anything.
    """
    followed, matters, present = (control["mean"] or 0.0) > CONTROL, _is_loss(content), _is_loss(presence)
    if followed and matters and (directions or 0) >= DIRECTIONS and (gate or 0) > GATE:
        return "used", "followed, and exchanging goals costs score"
    if followed and matters:
        return "obeyed but collapsed", "exchanging goals costs score, but they fill one direction or the gate is shut"
    if present and not matters:
        return "constant bias", "taking goals away costs score, exchanging them does not"
    if followed:
        change = -(content["mean"] or 0.0)
        return "obeyed but irrelevant", f"followed, and exchanging goals changes the score by {change:+.3f}"
    if matters:
        return "not followed", "exchanging goals costs score, but no worker moves along a foreign one"
    if alike is not None and alike > ALIKE:
        return "one goal for all", f"goals of different examples are alike (cosine {alike:.2f})"
    change = -(presence["mean"] or 0.0)
    harm = f"; without goals the score changes by {change:+.3f}" if change else ""
    return "not followed", f"no worker moves along a foreign goal{harm}"


def _is_loss(drop: Summary) -> bool:
    """Whether a drop is larger than two standard errors."""
    return drop["mean"] is not None and drop["se"] is not None and drop["mean"] > 2 * drop["se"] > 0


def _cosine(values: Mapping[str, Any], which: str) -> float:
    return values[f"feudal_cos{which}"] or 0.0  # None where no pass had a goal


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
