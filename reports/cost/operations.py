"""FLOPs of a run's training steps, which may get deeper during training (arch.cycles_schedule)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """Consecutive training steps of equal cost."""

    steps: int
    flops: float | None
    """FLOPs of one step; None if the model does not count them."""


def stages(model: Any, rows: int, *, steps: int, horizon: int) -> list[Stage]:
    """The stages of steps 1 to `steps` of a run planned for `horizon` steps with batches of `rows`.

    Step s belongs to the stage at progress (s - 1) / horizon, as in the task. A model without `stage_flops` has one
    stage.
    """
    counted: Callable[[int], dict[str, float]] | None = getattr(model, "flops", None)
    by_stage: Callable[[int], list[tuple[float, float]]] | None = getattr(model, "stage_flops", None)
    if by_stage is None or len(costs := by_stage(rows)) == 1:
        return [Stage(steps, counted(rows)["train"] if counted else None)]
    numbers = range(1, horizon + 1)
    before = [bisect_left(numbers, begins, key=lambda step: (step - 1) / horizon) for begins, _ in costs]
    ends = [min(steps, end) for end in (*before[1:], horizon)]
    parts = [
        Stage(end - begin, flops) for begin, end, (_, flops) in zip(before, ends, costs, strict=True) if end > begin
    ]
    return parts or [Stage(steps, costs[0][1])]


def steps_within(seconds: float, parts: Sequence[tuple[int, float]]) -> int:
    """The step at which a budget of `seconds` ends, given (steps, seconds of each) parts; the last part is extended."""
    taken = 0
    for steps, each in parts[:-1]:
        if seconds <= steps * each:
            break
        taken, seconds = taken + steps, seconds - steps * each
    else:
        each = parts[-1][1]
    return taken + max(1, math.ceil(seconds / each))


def training_flops(parts: Sequence[Stage]) -> float | None:
    """FLOPs of all steps of `parts`; None if the model does not count them."""
    if parts[0].flops is None:
        return None
    return sum(part.steps * (part.flops or 0.0) for part in parts)
