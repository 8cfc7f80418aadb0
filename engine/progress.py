"""A progress bar with time left, on a terminal only. Lines printed meanwhile appear above it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from engine.distributed import is_main

if TYPE_CHECKING:
    from engine.trainer import Trainer


class ProgressBar:
    """A hook of the trainer. Draws nothing where stdout is no terminal, and on ranks other than 0."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def start(self, trainer: Trainer) -> None:
        """Open the bar at the present step."""
        if not (is_main() and sys.stdout.isatty()):
            return
        from rich import progress

        self._bar = progress.Progress(
            progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"), progress.BarColumn(),
            progress.TaskProgressColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn(),
            progress.TextColumn("gone"), progress.TimeElapsedColumn(), progress.TextColumn("{task.description}"),
            transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=trainer.last_step, completed=trainer.step)
        self._bar.start()

    def after_step(self, trainer: Trainer) -> None:
        """Advance by one step; the step that an evaluation follows says so, since that takes a while."""
        if self._bar is not None:
            waiting = "evaluating" if trainer.evaluation_due() else ""
            self._bar.update(self._task, completed=trainer.step, description=waiting)

    def after_eval(self, trainer: Trainer, results: dict[str, Any]) -> None:
        """The evaluation is over."""
        if self._bar is not None:
            self._bar.update(self._task, description="")

    def end(self, trainer: Trainer | None = None) -> None:
        """Remove the bar; may be called twice, and after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
