"""Compare the two forms of applying a low-rank delta (low-rank, dense) in time and memory.

One linear layer of width C with a delta of rank r, on B rows of T positions; in training forward and backward. On a CPU
times are CPU time of this process, so that other processes on the machine matter little.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from models.feedback.apply import FORMS, choose_form
from models.layers import CastedLinear

GRID = {"rows": (1, 16), "length": (32, 128, 512), "width": (64, 256, 512), "rank": (1, 8, 64, 256)}
MEMORY_AT = (16, 128, 512, 8)
"""(rows, positions, width, rank) at which memory is compared."""
LEAST_S = 0.02
"""Shortest duration of a measurement, which repeats its work accordingly."""


@dataclass(frozen=True)
class Timing:
    """One cell of the grid; times in milliseconds."""

    rows: int
    length: int
    width: int
    rank: int
    training: bool
    lowrank_ms: float
    dense_ms: float
    auto: str

    @property
    def excess(self) -> float:
        """How much slower `auto`'s choice is than the faster form: 0.1 is 10 %."""
        best = min(self.lowrank_ms, self.dense_ms)
        return (self.lowrank_ms if self.auto == "lowrank" else self.dense_ms) / best - 1.0

    def as_row(self) -> dict[str, float | int | bool | str]:
        """The fields as a row of a result file."""
        return {**asdict(self), "excess": self.excess}


@dataclass
class _Cell:
    linear: CastedLinear
    x: Tensor
    a: Tensor
    b: Tensor
    grad: Tensor


def _cell(rows: int, length: int, width: int, rank: int, device: torch.device, training: bool) -> _Cell:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device).requires_grad_(training)

    linear = CastedLinear(width, width).to(device).requires_grad_(False)
    factors = draw(rows, rank, width), draw(rows, rank, width)
    return _Cell(linear, draw(rows, length, width), *factors, draw(rows, length, width).detach())


def _work(cell: _Cell, form: str, training: bool) -> None:
    y = FORMS[form](cell.linear, cell.x, cell.a, cell.b, 0.1)
    if training:
        torch.autograd.grad(y, (cell.x, cell.a, cell.b), cell.grad)


def _timed(work: Callable[[], None], device: torch.device, times: int) -> float:
    """Mean seconds per call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - began) / times


def timings(
    device: torch.device, *, repeats: int = 5, grid: dict[str, Sequence[int]] | None = None
) -> Iterator[Timing]:
    """Time every cell of the grid, training and evaluation: the shortest of `repeats` measurements of each form."""
    sizes = [*itertools.product(*(grid or GRID).values())]  # type: ignore[arg-type]
    for (rows, length, width, rank), training in itertools.product(sizes, (True, False)):
        cell = _cell(rows, length, width, rank, device, training)
        with torch.set_grad_enabled(training):
            auto = choose_form("auto", rows, length, rank, (width, width), cell.x.dtype, device.type)
            work = {form: partial(_work, cell, form, training) for form in FORMS}
            first = {form: _timed(work[form], device, 2) for form in FORMS}
            best = dict.fromkeys(FORMS, float("inf"))
            for _ in range(repeats):
                for form in FORMS:
                    times = max(1, min(200, round(LEAST_S / max(first[form], 1e-6))))
                    best[form] = min(best[form], _timed(work[form], device, times))
        yield Timing(rows, length, width, rank, training, 1000 * best["lowrank"], 1000 * best["dense"], auto)


def delta_memory(form: str, device: torch.device) -> int:
    """Peak bytes of a training step of a layer with a delta, minus those of the layer without one.

    Raises: RuntimeError on a device whose allocations cannot be measured.
    """
    cell = _cell(*MEMORY_AT, device, True)

    def plain() -> None:
        torch.autograd.grad(cell.linear(cell.x), cell.x, cell.grad)

    return _peak(lambda: _work(cell, form, True), device) - _peak(plain, device)


def _peak(work: Callable[[], None], device: torch.device) -> int:
    """Peak bytes allocated during `work`, beyond those allocated before it."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise RuntimeError(f"allocations on {device.type} are not observed: measure on cpu or cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    held = peak = 0
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
