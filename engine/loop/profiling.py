"""A trace of a few steps with torch.profiler, as a hook of the trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.io import atomic_write_text, print_rank0

if TYPE_CHECKING:
    from engine.loop.trainer import Trainer

WARM_UP = 2  # one step for what happens only once (compiling, caches), one with the profiler already on
ROWS = 20


class StepProfiler:
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
                f"warning: no profile: it begins at step {self._first}, and the run ends at {trainer.last_step}"
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

    def after_eval(self, trainer: Trainer, results: dict[str, Any]) -> None:
        """Evaluations are part of the trace."""

    def end(self, trainer: Trainer) -> None:
        """Where the run ends sooner, what there is is written."""
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
            print_rank0(f"warning: no profile ({error}), training goes on")
        else:
            print_rank0(f"profile     {trace} and the {ROWS} costliest operators beside it")
