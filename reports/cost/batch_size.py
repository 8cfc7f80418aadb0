"""Searches for the best batch size: double, then bisect, each size measured in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UsageError

SLOWER = 0.95  # the search ends when a larger batch has less than this share of the best throughput
IMPORTS = 64 * 2**20  # memory of a run's modules after torch is imported, rounded up
NEAR = 0.97  # the smallest batch with at least this share of it is recommended


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A measured batch size; `reason`: why it cannot be used, "" if it can."""

    rows: int
    examples_per_s: float | None = None
    memory: int | None = None
    reason: str = ""


def find_batch_size(start: int, step: int, measure: Callable[[int], Trial]) -> list[Trial]:
    """Trials in increasing order: halve `start` until it works, double it while that pays, then bisect to an eighth.

    All sizes are multiples of `step` (ranks x accumulation).
    """
    trials: dict[int, Trial] = {}

    def usable(rows: int) -> bool:
        trials[rows] = trials.get(rows) or measure(rows)
        return not trials[rows].reason

    low = start
    while not usable(low) and low > step:
        low = max(step, low // 2 // step * step)
    high = next((rows for rows in sorted(trials) if trials[rows].reason and rows > low), None)
    while not trials[low].reason and high is None and _still_pays(trials):
        if usable(2 * low):
            low *= 2
        else:
            high = 2 * low
    while high is not None and not trials[low].reason and high - low > max(step, low // 8):
        middle = (low + high) // 2 // step * step
        if middle in (low, high):
            break
        low, high = (middle, high) if usable(middle) else (low, middle)
    return [trials[rows] for rows in sorted(trials)]


def _still_pays(trials: dict[int, Trial]) -> bool:
    speeds = [trials[rows].examples_per_s or 0.0 for rows in sorted(trials) if not trials[rows].reason]
    return len(speeds) < 2 or speeds[-1] >= SLOWER * max(speeds[:-1])


def best(trials: list[Trial]) -> Trial | None:
    """The smallest batch that is about as fast per row as the fastest; None if none works."""
    usable = [trial for trial in trials if not trial.reason]
    fastest = max((trial.examples_per_s or 0.0 for trial in usable), default=0.0)
    return next((trial for trial in usable if (trial.examples_per_s or 0.0) >= NEAR * fastest), None)


def measure_apart(command: list[str], key: str, rows: int, *, limit_s: float) -> Trial:
    """Run `command`, an estimate, with `key=rows` in a child process, which frees all its memory at the end."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "estimate.json"
        try:
            done = subprocess.run(
                [*command, "--json", str(result), f"++{key}={rows}"],
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Trial(rows=rows, reason=f"no three steps within {limit_s:.0f} s")
        if done.returncode or not result.exists():
            return Trial(rows=rows, reason=_failure_reason(done))
        numbers = json.loads(result.read_text(encoding="utf-8"))
    return Trial(rows=rows, examples_per_s=numbers["examples_per_s"], memory=numbers["memory"]["process"])


def _failure_reason(done: subprocess.CompletedProcess[str]) -> str:
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if done.returncode < 0 or "emory" in last:
        return "out of memory"
    return last.removeprefix("error: ").partition(":")[0]


# --- memory of a CPU run ----------------------------------------------------------------------------------------------


def read_size(text: str) -> int:
    """Parse a size in bytes: `8GiB`, `500MB`, `2G` or a plain number. Raises: UsageError."""
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
    lowered = text.strip().lower().removesuffix("b")
    number = lowered.rstrip("kmgi")
    try:
        size = int(float(number) * units[lowered[len(number) :]])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 2**26:
        raise UsageError(f"--memory-limit {text}: expected a size such as 8GiB, at least 64MiB")
    return size


def usual_limit() -> int:
    """Four fifths of the memory that is free now, on this machine or in this container, in bytes."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        free = pages // 2
    try:
        group = Path("/sys/fs/cgroup")
        allowed = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        allowed = free
    return int(0.8 * min(free, allowed))


def _private_memory() -> int:
    """Bytes that RLIMIT_DATA counts in this process; 0 if unknown."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # not Linux
        return 0
    return 1024 * int(status.partition("VmData:")[2].split()[0])


def limit_memory(size: int) -> None:
    """Limit the memory of this process to `size` bytes: beyond it allocations fail.

    RLIMIT_DATA counts private writable memory; address space (RLIMIT_AS) would count torch's libraries, too.

    Raises: UsageError if torch and the imports of a run hardly leave any of it.
    """
    import resource

    least = _private_memory() + IMPORTS
    if size < least:
        raise UsageError(
            f"a memory limit of {size // 10**6} MB is too little: torch and a run's imports need {least // 10**6} MB"
        )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_DATA, (min(size, most), hard))
