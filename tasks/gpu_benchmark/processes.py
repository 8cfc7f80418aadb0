"""Run each row in its own process: all warm up in parallel, since compiling takes a minute on one core, then each is
timed alone on the device. An error in one row, even a broken device context, does not affect the others."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from engine.errors import RunFailure, UsageError
from engine.loop.step_graph import WARM_UP
from tasks.gpu_benchmark.case import PUBLIC, Bench, Case
from tasks.gpu_benchmark.timing import Work, in_rounds, one_line, quartiles

WARM_UP_STEPS = WARM_UP + 3  # enough to capture a step graph and to use it
REFERENCE = "public code, compiled"
TIMING_LIMIT = 120.0  # seconds after which the timing of a row is given up


@dataclass(frozen=True)
class Settings:
    """`seconds` bounds the timing of a row, `warm_up` the parallel warm-up. Only modes whose name matches the regular
    expression `modes` are run. `device` has an index if it is a GPU: cuda:0."""

    device: str
    pairs: int = 7
    seconds: float = 8.0
    warm_up: float = 240.0
    modes: str = ""
    threads: int | None = None


def measured_rows(cases: Sequence[Case], settings: Settings, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the result of `Row.measure` for every row, or `{"name", "error"}`. Files go into `folder`."""
    context = multiprocessing.get_context("spawn")
    workers = max(1, (os.cpu_count() or 1) // max(1, len(cases)))  # compile processes per row
    running: dict[Connection, tuple[Case, Any]] = {}
    try:
        for number, case in enumerate(cases):
            ours, theirs = context.Pipe()
            process = context.Process(target=_child, args=(theirs, case, settings, folder / str(number), workers))
            process.start()
            theirs.close()
            running[ours] = (case, process)
        waiting, ready, end = set(running), [], time.monotonic() + settings.warm_up
        while waiting and (left := end - time.monotonic()) > 0:
            for connection in wait(waiting, timeout=left):
                assert isinstance(connection, Connection)
                waiting.discard(connection)
                case, process = running[connection]
                if "ready" in (answer := _answer(connection, process, 0)):
                    ready.append(connection)
                    sys.stderr.write(f"warm: {case.name}, after {settings.warm_up - end + time.monotonic():.0f} s\n")
                else:
                    yield {"name": case.name, **answer}
        for connection in waiting:
            case, process = running[connection]
            process.kill()
            yield {"name": case.name, "error": f"was not warm after {settings.warm_up:g} seconds"}
        for connection in ready:
            case, process = running[connection]
            connection.send("go")
            yield {"name": case.name, **_answer(connection, process, TIMING_LIMIT)}
            process.join(20)
    finally:
        for _, process in running.values():
            if process.is_alive():
                process.kill()
            process.join()


def _answer(connection: Connection, process: Any, limit: float) -> dict[str, Any]:
    """The message that the process sends within `limit` seconds, else `{"error"}`."""
    try:
        if not connection.poll(limit):
            return {"error": f"gave no figures in {limit:g} seconds"}
        answer: dict[str, Any] = connection.recv()
        return answer
    except (EOFError, OSError):
        process.join(10)
        return {"error": f"its process ended with exit code {process.exitcode}"}


def _child(connection: Connection, case: Case, settings: Settings, folder: Path, workers: int) -> None:
    """Process of one row: send `{"ready": seconds}`, wait for a message, send the timings; on failure `{"error"}`."""
    try:
        import torch._inductor.config as inductor

        inductor.compile_threads = workers
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        row = Row(case, settings, folder)
        row.warm_up()
        connection.send({"ready": row.warm_up_seconds})
        connection.recv()
        connection.send(row.measure())
    except BaseException as error:
        with contextlib.suppress(OSError):
            connection.send({"error": one_line(error)})
        os._exit(1)  # a process with a broken device context may hang at exit


class Row:
    """The modes of one case. Compiled and captured ones warm up first; eager ones only when the row is timed, since
    they take the most memory."""

    def __init__(self, case: Case, settings: Settings, folder: Path) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        self.bench = Bench(case, self.device, folder)
        self.modes = [mode for mode in case.modes if re.search(settings.modes, mode)]
        self.works: dict[str, Work] = {}
        self.notes: dict[str, list[str]] = {}
        self.errors: dict[str, str] = {}
        self.warm_up_seconds: dict[str, float] = {}

    def warm_up(self, *, eager: bool = False) -> None:
        """Take a few steps in each compiled mode, or in each `eager` one."""
        for mode in self.modes:
            if mode.endswith("eager") == eager:
                self._warm_up(mode)

    def _warm_up(self, mode: str) -> None:
        began, printed = time.perf_counter(), io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                work = self.bench.work(mode)
                work(WARM_UP_STEPS)
                self._free()
            if mode in self.bench.graphs and not self.bench.graphs[mode].works:
                raise RunFailure("the step could not be captured")  # a launch only warns and continues without it
            self.works[mode] = work
        except (Exception, SystemExit) as error:
            self.errors[mode] = str(error) if isinstance(error, UsageError | RunFailure) else one_line(error)
        self.warm_up_seconds[mode] = round(time.perf_counter() - began, 1)
        lines = printed.getvalue().splitlines()
        self.notes[mode] = [line for line in lines if line.strip() and not line.startswith("device ")]

    def _free(self) -> None:
        """Free the memory that only the warm-up needed: other rows warm up on the same device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def measure(self) -> dict[str, Any]:
        """Time all modes; JSON-ready: for each mode `ms` [lower quartile, median, upper quartile], `ratio` (quartiles
        of the compiled public code's time over its own, per round), `tflops`; then errors and printed lines."""
        self.warm_up(eager=True)
        works = {mode: self.works[mode] for mode in self.modes if mode in self.works}
        times, errors = in_rounds(works, self.device, rounds=self.settings.pairs, seconds=self.settings.seconds)
        reference = times.get(REFERENCE)
        figures: dict[str, dict[str, Any]] = {}
        for mode, values in times.items():
            low, middle, high = quartiles(values)
            figures[mode] = {"ms": [low, middle, high], "rounds_ms": values}
            if reference is not None:
                pairs = zip(reference, values, strict=True)
                figures[mode]["ratio"] = quartiles([theirs / own for theirs, own in pairs])
            if self.bench.flops is not None:
                figures[mode]["tflops"] = 1e-9 * self.bench.flops / middle
        return {
            "modes": figures,
            "errors": {**self.errors, **errors},
            "flops": self.bench.flops,
            "warm_up_seconds": self.warm_up_seconds,
            "notes": {mode: lines for mode, lines in self.notes.items() if lines and mode not in PUBLIC},
        }
