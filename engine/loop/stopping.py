"""Early stopping: the run ends once its primary metric has not become better for some evaluations."""

from __future__ import annotations

import math
from typing import Any

from engine.config import RunConfig
from engine.errors import UsageError
from engine.task import TrainingPlan


class EarlyStop:
    """Counts evaluations without progress; the count and the best value are part of the checkpoint.

    It counts in every run, so that a resume may ask for early stopping and has the past before it.
    """

    def __init__(self, config: RunConfig, *, direction: str) -> None:
        self.patience, self.min_delta = config.early_stop_patience, config.early_stop_min_delta
        self.sign = 1.0 if direction == "max" else -1.0
        self.restart()

    def restart(self) -> None:
        """Begin to count: no value was seen that the coming ones compare with."""
        self.best: float | None = None
        self.best_step: int | None = None
        self.best_apart = False  # the best value is of a final evaluation that covers something else than the others
        self.mark: float | None = None  # what the next value has to exceed by min_delta
        self.waited = 0

    def update(self, value: float | None, step: int, *, counts: bool, apart: bool = False) -> None:
        """Take the primary metric of one evaluation; none, or NaN, is no progress.

        `counts` is false for one that only belongs to an end (of max_steps, say), so that a run that goes on from
        there stops where it would have stopped without that end. `apart` is one that covers something else than the
        others (a whole split, not a subset of it): it is compared with its like only, and gives way to the others.
        """
        usable = value if value is not None and not math.isnan(value) else None
        if usable is not None and (
            self.best is None or (self.best_apart and not apart)
            or (self.best_apart == apart and self.sign * (usable - self.best) > 0)
        ):  # fmt: skip
            self.best, self.best_step, self.best_apart = usable, step, apart
        if not counts:
            return
        self.waited += 1
        if usable is not None and (self.mark is None or self.sign * (usable - self.mark) > self.min_delta):
            self.mark, self.waited = usable, 0

    @property
    def due(self) -> bool:
        """Whether the run has waited long enough."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        best = {"best": self.best, "best_step": self.best_step, "best_apart": self.best_apart}
        return {**best, "mark": self.mark, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; an empty state, of a checkpoint that knew no early stopping, begins to count."""
        for name in self.state_dict().keys() & state.keys():
            setattr(self, name, state[name])


def check_early_stop(config: RunConfig, plan: TrainingPlan) -> None:
    """Raises UsageError where early stopping could never come to pass."""
    if config.early_stop_patience is not None and not plan.eval_steps:
        raise UsageError(
            f"early_stop_patience={config.early_stop_patience} needs evaluations before the end and this run has none: "
            "set eval_interval, or early_stop_patience=null"
        )
