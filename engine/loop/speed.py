"""Time and memory of a run's steps, in the words and by the definitions of scripts/estimate.py (reports/cost/)."""

from __future__ import annotations

import resource
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.io import print_rank0
from engine.loop import step_graph
from engine.loop.hooks import Hook

if TYPE_CHECKING:
    from engine.loop.trainer import Trainer

WARM_UP = 1
"""Steps before any are timed: lazy state, kernels chosen, pages touched. A compiler and a step graph have their own."""
STEPS, SECONDS, FEWEST = 8, 20.0, 2
"""So many are timed, or as many as that time allows, but not fewer."""


class StepSpeed(Hook):
    """Prints one line in the run's first steps, of figures that the loop has anyway: the median time of a step, the
    mode that runs, the peak of memory. A run of fewer steps prints none."""

    def start(self, trainer: Trainer) -> None:
        """Nothing is counted yet."""
        self._warm_up, self._printed = warm_up(trainer), False
        self._counted: list[float] = []

    def after_step(self, trainer: Trainer) -> None:
        """The loop counts the time of a step after this: what is known here is that of the steps before."""
        if self._printed:
            return
        self._counted.append(trainer.seconds)
        timed = [after - before for before, after in pairwise(self._counted)][self._warm_up :]
        if enough(len(timed), sum(timed)):
            self._printed = True
            device = trainer.runtime.device
            peak = peak_text(peak_memory(device), device.type)
            step = step_text(statistics.median(timed), len(timed), compiled(trainer), captured=captured(trainer))
            print_rank0(f"speed       {step}, {peak}")


def warm_up(trainer: Trainer) -> int:
    """Steps that are not timed: a compiler takes two (recursive models have another graph in the second), and a step
    graph is captured in the last of its own."""
    return WARM_UP + (compiled(trainer) != "off") + (step_graph.WARM_UP if trainer.graph is not None else 0)


def enough(timed: int, seconds: float, *, steps: int = STEPS, limit: float = SECONDS) -> bool:
    """Whether `timed` steps, in so many `seconds`, are all that are timed."""
    return timed >= steps or (timed >= FEWEST and seconds > limit)


def compiled(trainer: Trainer) -> str:
    """off, block or full: what `compile` has come to."""
    return str(getattr(trainer.task, "compiled", "off"))


def captured(trainer: Trainer) -> bool:
    """Whether steps run as one CUDA graph."""
    return trainer.graph is not None and trainer.graph.works


def step_text(seconds: float, timed: int, mode: str, *, captured: bool) -> str:
    """The seconds of a step, the median of `timed` ones, and in which mode."""
    graph = "on" if captured else "off"
    return f"{duration(seconds)} a step ({timed} timed, compile={mode}, step_graph={graph})"


def peak_memory(device: torch.device) -> int:
    """Bytes: most that was allocated on a GPU, most that the process had otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def peak_text(peak: int, device_type: str) -> str:
    """`peak` bytes, and of what."""
    scope = "allocated on the GPU" if device_type == "cuda" else "of the process, Python and torch included"
    return f"peak {size(peak)} {scope}"


def size(count: float) -> str:
    """Bytes, for a person."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def duration(seconds: float) -> str:
    """Seconds, for a person."""
    for limit, unit, scale in ((1, "ms", 1e-3), (120, "s", 1), (7200, "min", 60)):
        if seconds < limit:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"
