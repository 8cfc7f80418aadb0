"""Grid tasks with their demonstrations, test grids and a model's attempts, read from a record of an evaluation.

A record is written by `arc@ARC` (`arc_tasks.json`) and by scripts/predict.py: every original task, the answers with the
most votes, whether they are right if that is known, and the meaning of the score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import Unreadable, read_json, reason_of

Grid = tuple[tuple[int, ...], ...]
"""Rows of colours 0 to 9; () for an answer that is not a grid."""
RECORD_LIMIT = 1 << 28


@dataclass(frozen=True)
class Attempt:
    """One of the answers with the most votes."""

    grid: Grid
    votes: int
    confidence: float
    """Mean of the halting head's probabilities over the votes."""
    right: bool | None
    """None if the solution is not known."""


@dataclass(frozen=True)
class Test:
    """A test grid and the attempts at it."""

    grid: Grid
    solution: Grid | None
    votes: int
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class TaskView:
    """A task as it is drawn."""

    name: str
    demonstrations: tuple[tuple[Grid, Grid], ...]
    tests: tuple[Test, ...]
    solved: bool | None
    """Whether every test grid has a right attempt; None if that is not known."""

    @property
    def verdict(self) -> str:
        """`solved`, `1 of 2 test grids right`, `not solved`, `solution not known`."""
        if self.solved is None:
            return "solution not known"
        right = sum(any(attempt.right for attempt in test.attempts) for test in self.tests)
        if self.solved or not right:
            return "solved" if self.solved else "not solved"
        return f"{right} of {len(self.tests)} test grids right"


@dataclass(frozen=True)
class Record:
    """All tasks of one evaluation."""

    tasks: list[TaskView]
    attempts: int
    meaning: str
    """Description of protocol class and leakage."""
    scores: Mapping[str, float | None] = field(default_factory=dict)


def read_record(path: Path) -> Record:
    """Read a record. Raises: UsageError naming the file, and a task that is damaged."""
    try:
        content = read_json(path, RECORD_LIMIT)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, Unreadable) as error:
        raise UsageError(f"{path} {reason_of(error)}") from None
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), dict):
        raise UsageError(f"{path} is not a record of tasks: expected arc_tasks.json of an evaluation, or of predict.py")
    return record_from(content, str(path))


def record_from(content: Mapping[str, Any], place: str) -> Record:
    """The record in parsed JSON. Raises: UsageError that begins with `place`."""
    attempts = content.get("attempts")
    if not isinstance(attempts, int) or attempts < 1:
        raise UsageError(f"{place}: attempts must be a whole number from 1, got {attempts!r}")
    tasks = []
    for name, task in content["tasks"].items():
        try:
            tasks.append(_task(str(name), task, attempts))
        except (TypeError, KeyError, ValueError, AttributeError):
            raise UsageError(f"{place}: task {name} is damaged: expected train, test and solved") from None
    if not tasks:
        raise UsageError(f"{place} holds no tasks")
    scores = content.get("scores")
    return Record(tasks, attempts, str(content.get("meaning", "")), scores if isinstance(scores, dict) else {})


def _task(name: str, task: Mapping[str, Any], attempts: int) -> TaskView:
    tests = []
    for test in task["test"]:
        answers = tuple(
            Attempt(_grid(one["grid"]), int(one["votes"]), float(one["confidence"]), one.get("right"))
            for one in test["answers"][:attempts]
        )
        solution = None if test.get("output") is None else _grid(test["output"])
        tests.append(Test(_grid(test["input"]), solution, int(test["votes"]), answers))
    demonstrations = tuple((_grid(pair["input"]), _grid(pair["output"])) for pair in task["train"])
    solved = task["solved"]
    return TaskView(name, demonstrations, tuple(tests), None if solved is None else bool(solved))


def _grid(value: Any) -> Grid:
    grid = tuple(tuple(int(cell) for cell in row) for row in value)
    if any(len(row) != len(grid[0]) or not all(0 <= cell <= 9 for cell in row) for row in grid) or len(grid) > 30:
        raise ValueError
    return grid
