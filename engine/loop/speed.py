"""Step time and peak memory of a run, worded and defined as in scripts/estimate.py (reports/cost/)."""

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
"""Untimed first steps: lazy state, kernel selection, page faults. A compiler and a step graph add their own."""
STEPS, SECONDS, FEWEST = 8, 20.0, 2
"""Steps timed, the seconds after which fewer suffice, and the fewest then."""


class StepSpeed(Hook):
    """Prints one line during the first steps, from what the loop measures anyway: median step time, compile mode, peak
    memory. A shorter run prints none."""

    def start(self, trainer: Trainer) -> None:
        """Reset the record."""
        self._warm_up, self._printed = warm_up(trainer), False
        self._seconds: list[float] = []

    def after_step(self, trainer: Trainer) -> None:
        """Called before the loop adds this step's time: `trainer.seconds` covers the steps before it."""
        if self._printed:
            return
        self._seconds.append(trainer.seconds)
        timed = [after - before for before, after in pairwise(self._seconds)][self._warm_up :]
        if enough(len(timed), sum(timed)):
            self._printed = True
            device = trainer.runtime.device
            peak = peak_text(peak_memory(device), device.type)
            step = step_text(statistics.median(timed), len(timed), compiled(trainer), captured=captured(trainer))
            print_rank0(f"speed       {step}, {peak}")


def warm_up(trainer: Trainer) -> int:
    """Untimed steps: compiling takes two (recursive models have another graph in the second), and a step graph is
    captured in the last of its own warm-up."""
    return WARM_UP + (compiled(trainer) != "off") + (step_graph.WARM_UP if trainer.graph is not None else 0)


def enough(timed: int, seconds: float, *, steps: int = STEPS, limit: float = SECONDS) -> bool:
    """Whether `timed` steps, which took `seconds`, suffice."""
    return timed >= steps or (timed >= FEWEST and seconds > limit)


def compiled(trainer: Trainer) -> str:
    """The compile mode that runs: off, block or full."""
    return str(getattr(trainer.task, "compiled", "off"))


def captured(trainer: Trainer) -> bool:
    """Whether steps run as one CUDA graph."""
    return trainer.graph is not None and trainer.graph.works


def step_text(seconds: float, timed: int, mode: str, *, captured: bool) -> str:
    """The median step time, in `seconds`, of `timed` steps, and the modes they ran in, as text."""
    graph = "on" if captured else "off"
    return f"{duration(seconds)} a step ({timed} timed, compile={mode}, step_graph={graph})"


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: allocated on a GPU, elsewhere resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def peak_text(peak: int, device_type: str) -> str:
    """`peak` bytes and what they count, as text."""
    scope = "allocated on the GPU" if device_type == "cuda" else "of the process, Python and torch included"
    return f"peak {size(peak)} {scope}"


def size(count: float) -> str:
    """Human-readable bytes."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def duration(seconds: float) -> str:
    """Human-readable seconds."""
    for limit, unit, scale in ((1, "ms", 1e-3), (120, "s", 1), (7200, "min", 60)):
        if seconds < limit:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"
