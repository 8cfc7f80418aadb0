"""What a run says of itself: what it trains, and a bar with the time left, on a terminal only."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from engine.distributed import is_main
from engine.io import print_rank0

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.loop.trainer import Trainer
    from engine.task import Runtime, TrainingPlan


class ProgressBar:
    """A hook of the trainer. Draws nothing where stdout is no terminal, and on ranks other than 0.

    Lines printed meanwhile appear above it.
    """

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


def print_plan(plan: TrainingPlan, config: RunConfig, runtime: Runtime, first_step: int) -> None:
    """What is trained, in batches of what, how long."""
    ranks = runtime.world_size
    micro = plan.batch_rows // (ranks * runtime.accumulation)
    groups = ", ".join(
        f"{group.name} {group.size:,} ({group.optimizer}, lr {group.lr:g})" for group in plan.task.param_groups()
    )
    last = min(plan.total_steps, config.max_steps or plan.total_steps)
    if 0 < last <= first_step:
        print_rank0(f"note: the run is at step {first_step} already and ends at {last}: nothing is trained")
    print_rank0(f"parameters  {groups}")
    for prefix, text in plan.splits.items():
        print_rank0(f"{prefix:<12}{text}")
    print_rank0(
        f"batch       {plan.batch_rows} = {micro} rows x accumulation {runtime.accumulation} x {ranks} rank(s), "
        f"reduction {config.parallel if ranks > 1 else 'none needed'}"
    )
    print_rank0(f"steps       {last}" + (f" of {plan.total_steps} (max_steps)" if last < plan.total_steps else ""))
