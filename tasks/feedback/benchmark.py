"""Both forms of applying a low-rank change, timed side by side, and the memory that each takes.

One changed linear layer, C to C numbers, of B rows of T positions at rank r; with training, forward and backward. On a
CPU times are CPU seconds of this process, so that other processes on the machine count little.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from models.feedback.apply import FORMS, choose
from models.layers import CastedLinear

GRID = {"rows": (1, 16), "length": (32, 128, 512), "width": (64, 256, 512), "rank": (1, 8, 64, 256)}
MEMORY_AT = (16, 128, 512, 8)
"""Rows, positions, width, rank at which the memory of both forms is compared."""
LEAST_S = 0.02
"""A measurement repeats its work until it has taken about this long."""


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
        """How much slower `auto` is than the better form: 0.1 is 10 %."""
        best = min(self.lowrank_ms, self.dense_ms)
        return (self.lowrank_ms if self.auto == "lowrank" else self.dense_ms) / best - 1.0

    def as_row(self) -> dict[str, float | int | bool | str]:
        """For a file of results."""
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
    """Seconds for one call."""
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
    """Every cell of the grid, training and evaluation: the least time of `repeats` turns of each form."""
    sizes = [*itertools.product(*(grid or GRID).values())]  # type: ignore[arg-type]
    for (rows, length, width, rank), training in itertools.product(sizes, (True, False)):
        cell = _cell(rows, length, width, rank, device, training)
        with torch.set_grad_enabled(training):
            auto = choose("auto", rows, length, rank, (width, width), cell.x.dtype, device.type)
            work = {form: partial(_work, cell, form, training) for form in FORMS}
            first = {form: _timed(work[form], device, 2) for form in FORMS}
            best = dict.fromkeys(FORMS, float("inf"))
            for _ in range(repeats):
                for form in FORMS:
                    times = max(1, min(200, round(LEAST_S / max(first[form], 1e-6))))
                    best[form] = min(best[form], _timed(work[form], device, times))
        yield Timing(rows, length, width, rank, training, 1000 * best["lowrank"], 1000 * best["dense"], auto)


def delta_memory(form: str, device: torch.device, sizes: tuple[int, int, int, int] = MEMORY_AT) -> int:
    """Peak bytes of a training step of one changed layer, less those of the unchanged one.

    Raises: RuntimeError on a device whose allocations are not observed.
    """
    cell = _cell(*sizes, device, True)

    def plain() -> None:
        torch.autograd.grad(cell.linear(cell.x), cell.x, cell.grad)

    return _peak(lambda: _work(cell, form, True), device) - _peak(plain, device)


def _peak(work: Callable[[], None], device: torch.device) -> int:
    """Most bytes allocated at one time during `work`, beyond those before it."""
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
