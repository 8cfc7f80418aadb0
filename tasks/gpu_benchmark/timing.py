"""Time functions on a device in alternating turns, and measure the device's ceilings: a matrix product and a copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Work = Callable[[int], Any]
"""Takes this many steps."""
TURN_SECONDS, MOST_STEPS, FEWEST_ROUNDS = 0.1, 200, 3


def milliseconds(work: Work, steps: int, device: torch.device) -> float:
    """Mean milliseconds per step, over `steps` steps: by CUDA events (gaps while the device waits for the host
    included), on a CPU by the clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        work(steps)
        return 1000 * (time.perf_counter() - began) / steps
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    work(steps)
    torch.cuda.synchronize(device)  # waits for all streams: a step may use its own
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / steps


def in_rounds(
    works: Mapping[str, Work], device: torch.device, *, rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(name -> milliseconds per step in each round; name -> error).

    Every round has one turn of each function, of about TURN_SECONDS, in alternating order; one that fails is left out
    from then on. After FEWEST_ROUNDS, no round starts later than `seconds`.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    errors: dict[str, str] = {}
    steps: dict[str, int] = {}
    began = time.perf_counter()
    for number in range(-1, rounds):  # round -1 only decides the number of steps
        if number >= FEWEST_ROUNDS and time.perf_counter() - began > seconds:
            break
        for name in list(works) if number % 2 else reversed(list(works)):
            if name in errors:
                continue
            try:
                elapsed = milliseconds(works[name], steps.get(name, 2), device)
            except Exception as error:  # a failing mode must not affect the others
                errors[name] = one_line(error)
                continue
            if number < 0:
                steps[name] = max(1, min(MOST_STEPS, round(1000 * TURN_SECONDS / max(elapsed, 1e-3))))
            else:
                times[name].append(elapsed)
    return {name: values for name, values in times.items() if name not in errors}, errors


def quartiles(values: list[float]) -> list[float]:
    """[lower quartile, median, upper quartile]."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def one_line(error: BaseException) -> str:
    """The error as one line of at most 200 characters."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]


def ceilings(device: torch.device, *, size: int = 8192, copied: int = 1 << 31) -> dict[str, float]:
    """`matmul_tflops` of a bfloat16 product [size, size] x [size, size] of random numbers; `copy_tbs`, TB/s read plus
    written, of a copy of `copied` bytes within the device. Medians of 7 measurements."""
    rates = _rates(device, size, copied)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the rows are measured on the same device next
    return rates


def _rates(device: torch.device, size: int, copied: int) -> dict[str, float]:
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.randn(copied // 4, device=device)
    target = torch.empty_like(source)

    def product(times: int) -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    def copy(times: int) -> None:
        for _ in range(times):
            target.copy_(source)

    def median(work: Work) -> float:
        work(5)
        return statistics.median(milliseconds(work, 10, device) for _ in range(7))

    return {"matmul_tflops": 2e-9 * size**3 / median(product), "copy_tbs": 2e-9 * copied / median(copy)}
