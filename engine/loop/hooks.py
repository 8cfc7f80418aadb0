"""Hooks of the trainer, and those that report on a run: what it trains, its progress, a trace of a few steps."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.distributed import is_main
from engine.io import atomic_write_text, print_rank0

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.loop.trainer import Trainer
    from engine.task import Runtime, TrainingPlan


class Hook:
    """What may be attached to a run beside the loop's own duties. Every method may be left out."""

    def start(self, trainer: Trainer) -> None:
        """Before the first step of this process."""

    def after_step(self, trainer: Trainer) -> None:
        """After each optimizer step."""

    def after_eval(self, trainer: Trainer, results: dict[str, Any]) -> None:
        """After each evaluation."""

    def end(self, trainer: Trainer) -> None:
        """When the loop ends well."""


class ProgressBar(Hook):
    """Draws nothing where stdout is not a terminal, and on ranks other than 0.

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
            progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            *progress.Progress.get_default_columns(),
            progress.TimeElapsedColumn(),
            transient=True,
        )
        self._task = self._bar.add_task("", total=trainer.last_step, completed=trainer.step)
        self._bar.start()

    def after_step(self, trainer: Trainer) -> None:
        """Advance by one step; the bar shows when an evaluation follows, which takes a while."""
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
    last = plan.last_step(config.max_steps)
    if 0 < last <= first_step:
        print_rank0(f"note: the run is already at step {first_step} and ends at {last}: nothing is trained")
    print_rank0(f"parameters  {groups}")
    for prefix, text in plan.splits.items():
        print_rank0(f"{prefix:<12}{text}")
    print_rank0(
        f"batch       {plan.batch_rows} = {micro} rows x accumulation {runtime.accumulation} x {ranks} rank(s), "
        f"reduction {config.parallel if ranks > 1 else 'none needed'}"
    )
    shortened = f" of {plan.total_steps} (max_steps)" if last < plan.total_steps else ""
    budget = f", at most {config.max_seconds:g} s of them (max_seconds)" if config.max_seconds else ""
    print_rank0(f"steps       {last}{shortened}{budget}")


# --- a trace with torch.profiler --------------------------------------------------------------------------------------


WARM_UP = 2  # one step for what happens only once (compiling, caches), one with the profiler already on
ROWS = 20


class StepProfiler(Hook):
    """Records `steps` steps after a warm-up, from the end of one to the end of the last: logging and saving included.

    Writes trace_step_A-B.json (chrome://tracing, ui.perfetto.dev) and operators_step_A-B.txt into `folder`.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self._profiler: Any = None
        self._first = self._last = 0

    def start(self, trainer: Trainer) -> None:
        """Begin at the first step of this process."""
        from torch import profiler

        self._first = trainer.step + WARM_UP + 1
        if trainer.last_step < self._first:
            print_rank0(
                f"warning: no profile: it would start at step {self._first}, and the run ends at {trainer.last_step}"
            )
            return
        kinds = [profiler.ProfilerActivity.CPU]
        if trainer.runtime.device.type == "cuda":
            kinds.append(profiler.ProfilerActivity.CUDA)
        plan = profiler.schedule(wait=WARM_UP - 1, warmup=1, active=self.steps, repeat=1)
        self._profiler = profiler.profile(activities=kinds, schedule=plan, on_trace_ready=self._write)
        self._profiler.start()

    def after_step(self, trainer: Trainer) -> None:
        """Count; after the last one the files are written and the profiler is gone."""
        if self._profiler is not None:
            self._last = trainer.step
            self._profiler.step()
            if trainer.step >= self._first + self.steps - 1:
                self.end(trainer)

    def end(self, trainer: Trainer) -> None:
        """Write what has been recorded, where the run ends sooner."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _write(self, recorded: Any) -> None:
        name = f"step_{self._first}-{self._last}"
        trace = self.folder / f"trace_{name}.json"
        half = self.folder / f".{trace.name}.part"
        device = any(event.device_type.name == "CUDA" for event in recorded.events())
        order = "self_device_time_total" if device else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        try:
            atomic_write_text(self.folder / f"operators_{name}.txt", table + "\n")
            recorded.export_chrome_trace(str(half))
            os.replace(half, trace)
        except OSError as error:
            print_rank0(f"warning: no profile ({error}), training continues")
        else:
            print_rank0(f"profile     {trace} and the {ROWS} costliest operators")
