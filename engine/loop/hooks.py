"""Trainer hooks: the base class, a progress bar and a profiler; and the printed plan of a run."""

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
    """Base class of trainer hooks. Every method is optional."""

    def start(self, trainer: Trainer) -> None:
        """Before the first step of this process."""

    def after_step(self, trainer: Trainer) -> None:
        """After each optimizer step."""

    def after_eval(self, trainer: Trainer, results: dict[str, Any]) -> None:
        """After each evaluation."""

    def end(self, trainer: Trainer) -> None:
        """After the last step, unless an error ended the run."""


class ProgressBar(Hook):
    """A progress bar, on rank 0 and only if stdout is a terminal. Lines printed meanwhile appear above it."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def start(self, trainer: Trainer) -> None:
        """Open the bar at the current step."""
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
        """Advance by one step, and show that an evaluation follows if one is due."""
        if self._bar is not None:
            description = "evaluating" if trainer.evaluation_due() else ""
            self._bar.update(self._task, completed=trainer.step, description=description)

    def after_eval(self, trainer: Trainer, results: dict[str, Any]) -> None:
        """Clear the description."""
        if self._bar is not None:
            self._bar.update(self._task, description="")

    def end(self, trainer: Trainer | None = None) -> None:
        """Remove the bar; may be called twice, and after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def print_plan(plan: TrainingPlan, config: RunConfig, runtime: Runtime, first_step: int) -> None:
    """Print what is trained, on which splits, the batch size and the number of steps."""
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


WARM_UP = 2  # one step for one-time work (compiling, caches), one with the profiler already on
ROWS = 20


class StepProfiler(Hook):
    """Profiles `steps` steps after a warm-up, each from the end of the previous one: logging and saving included.

    Writes trace_step_A-B.json (chrome://tracing, ui.perfetto.dev) and operators_step_A-B.txt into `folder`.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self._profiler: Any = None
        self._first = self._last = 0

    def start(self, trainer: Trainer) -> None:
        """Schedule the recording, counted from the first step of this process."""
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
        schedule = profiler.schedule(wait=WARM_UP - 1, warmup=1, active=self.steps, repeat=1)
        self._profiler = profiler.profile(activities=kinds, schedule=schedule, on_trace_ready=self._write)
        self._profiler.start()

    def after_step(self, trainer: Trainer) -> None:
        """Advance the profiler; after the last recorded step, write the files and stop."""
        if self._profiler is not None:
            self._last = trainer.step
            self._profiler.step()
            if trainer.step >= self._first + self.steps - 1:
                self.end(trainer)

    def end(self, trainer: Trainer) -> None:
        """Stop, and write what has been recorded."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _write(self, recorded: Any) -> None:
        name = f"step_{self._first}-{self._last}"
        trace = self.folder / f"trace_{name}.json"
        part = self.folder / f".{trace.name}.part"
        device = any(event.device_type.name == "CUDA" for event in recorded.events())
        order = "self_device_time_total" if device else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        try:
            atomic_write_text(self.folder / f"operators_{name}.txt", table + "\n")
            recorded.export_chrome_trace(str(part))
            os.replace(part, trace)
        except OSError as error:
            print_rank0(f"warning: no profile ({error}), training continues")
        else:
            print_rank0(f"profile     {trace} and the {ROWS} costliest operators")
