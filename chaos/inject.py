"""Injects faults inside the process that meets them, through audit events and two wrapped methods of its trainer.

Operations are renames, removals, new folders, links, truncations, syncs and files opened for writing, in the working
folder. `fsync` does nothing here: there is no power failure, and what a killed process wrote stays in the page cache.
Only the standard library: `chaos.site` makes unaware processes import this.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "LOOPFORGE_CHAOS"
"""The environment variable that names the file of injections for a command's own children."""
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate", "os.link"}
SAVE = "/checkpoints/.step_"
"""Part of the path of every file of a checkpoint while it is written."""


@dataclass(frozen=True)
class Strike:
    """A fault with a step instead of a share of the steps; see `faults.Fault` for the other fields."""

    kind: str
    step: int
    count: int
    rank: int
    amount: float
    cut: bool = False


@dataclass(frozen=True)
class Injection:
    """The faults to inject into one process."""

    place: str
    """Its working folder: only operations inside count."""
    notes: str
    """A folder elsewhere: gets a file `struck-N` for each strike made."""
    strikes: Sequence[Strike] = field(default=())
    rank: int = 0
    counts_steps: bool = False
    """Whether the newest training step is written to the file `steps` in `notes`."""

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(file: Path) -> Injection:
        stored = json.loads(file.read_text())
        return Injection(**{**stored, "strikes": [Strike(**each) for each in stored["strikes"]]})


class Injector:
    """Counts the events of the process and makes each strike once."""

    def __init__(self, injection: Injection) -> None:
        self.injection, self.step, self._patched, self._busy = injection, 0, False, False
        self._waiting = dict(enumerate(injection.strikes))
        self._counts = dict.fromkeys(self._waiting, 0)
        self._limit: tuple[int, int] | None = None

    def install(self) -> None:
        """Start to count events."""
        sys.addaudithook(self._event)
        os.fsync = lambda fd: self._operation("")
        self._patch()

    # --- events

    def _event(self, event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS:
            place = args[1] if event in ("os.rename", "os.symlink") else args[0]
        elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            place = args[0]
        else:
            if event == "open" and not self._patched:
                self._patch()
            return
        if isinstance(place, int):
            return
        path = os.path.abspath(os.fsdecode(place))
        if path.startswith(self.injection.place):
            self._operation(path)

    def _patch(self) -> None:
        """Wrap the trainer's steps and evaluations, once the process has imported it."""
        trainer: Any = getattr(sys.modules.get("engine.loop.trainer"), "Trainer", None)
        if trainer is None or not hasattr(trainer, "_evaluate") or self._patched:
            return
        self._patched = True
        train_step, evaluate = trainer._train_step, trainer._evaluate

        @functools.wraps(train_step)
        def counted_step(loop: Any) -> None:
            self._step(loop.step)
            train_step(loop)

        @functools.wraps(evaluate)
        def counted_evaluate(loop: Any, **more: Any) -> None:
            from torch.nn.modules.module import register_module_forward_pre_hook

            self.step = max(self.step, loop.step)
            hook = register_module_forward_pre_hook(lambda *_: self._count("evaluation"))
            evaluate(loop, **more)
            hook.remove()
            self._count("evaluation", last=True)

        trainer._train_step, trainer._evaluate = counted_step, counted_evaluate

    def _step(self, step: int) -> None:
        self.step = step
        self._restore_disk()
        if self.injection.counts_steps:
            Path(self.injection.notes, "steps").write_text(str(step))
        for number, strike in list(self._waiting.items()):
            if strike.kind in ("evaluation", "data") or strike.count or (strike.kind == "disk" and not strike.cut):
                continue
            self._strike_if_due(number, strike)

    def _operation(self, path: str) -> None:
        if self._busy:
            return
        for number, strike in list(self._waiting.items()):
            match strike.kind:
                case "evaluation":
                    continue
                case "disk" if strike.cut or SAVE not in path:
                    continue
                case "data" if not path.startswith(os.path.join(self.injection.place, "data")):
                    continue
            if self.step >= strike.step:
                self._counts[number] += 1
            self._strike_if_due(number, strike)

    def _count(self, kind: str, *, last: bool = False) -> None:
        for number, strike in list(self._waiting.items()):
            if strike.kind == kind and self.step >= strike.step:
                self._counts[number] += 1
                self._strike_if_due(number, strike, now=last)

    # --- strikes

    def _strike_if_due(self, number: int, strike: Strike, *, now: bool = False) -> None:
        if self.step < strike.step or self.injection.rank != strike.rank:
            return
        if not now and self._counts[number] < strike.count:
            return
        self._busy = True
        del self._waiting[number]
        if self._claim(number):
            self._strike(strike)
        self._busy = False

    def _claim(self, number: int) -> bool:
        """Record the strike; False if another process has already made it."""
        try:
            os.close(os.open(os.path.join(self.injection.notes, f"struck-{number}"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _strike(self, strike: Strike) -> None:
        pid = os.getpid()
        match strike.kind:
            case "term":
                os.kill(pid, signal.SIGTERM)
            case "stop":
                wake = f"sleep {strike.amount}; kill -CONT {pid}; sleep 3; kill -CONT {pid}"
                null = subprocess.DEVNULL
                subprocess.Popen(["sh", "-c", wake], stdin=null, stdout=null, stderr=null)
                os.kill(pid, signal.SIGSTOP)
            case "disk":
                self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(strike.amount), self._limit[1]))
            case _:
                os.kill(pid, signal.SIGKILL)

    def _restore_disk(self) -> None:
        if self._limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)
            self._limit = None


def arm_job() -> None:
    """In a Python process started by a command: install the injection for that command's jobs."""
    file = os.environ.get(VARIABLE)
    if file and any(word.endswith(".py") for word in sys.orig_argv[1:]):
        Injector(Injection.read(Path(file))).install()
