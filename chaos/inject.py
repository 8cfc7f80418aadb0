"""Inside the process that meets the fault. Its code is the product's; the strike hangs on audit events and two methods.

Operations are renames, removals, folders, links, truncations, syncs and files opened for writing, below the working
folder. `fsync` itself does nothing here: no power is cut, and what a killed process wrote stays in the system's cache.
Only the standard library: `chaos.site` has this imported by processes that know nothing of it.
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
"""The environment variable in which a command's own children find the file of their order."""
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate", "os.link"}
SAVE = "/checkpoints/.step_"
"""In the path of every file of a checkpoint that is being written."""


@dataclass(frozen=True)
class Strike:
    """A fault with its step in place of a share; `faults.Fault` has the meaning of the fields."""

    kind: str
    step: int
    count: int
    rank: int
    amount: float
    cut: bool = False


@dataclass(frozen=True)
class Order:
    """What a process is to do to itself."""

    place: str
    """Its working folder: operations below it count."""
    notes: str
    """A folder outside of it: the file `struck-N` for each strike that was made."""
    strikes: Sequence[Strike] = field(default=())
    rank: int = 0
    counts_steps: bool = False
    """Whether the last training step is left in the file `steps` of the notes."""

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(file: Path) -> Order:
        stored = json.loads(file.read_text())
        return Order(**{**stored, "strikes": [Strike(**each) for each in stored["strikes"]]})


class Injector:
    """Counts what the process does and strikes, each strike once."""

    def __init__(self, order: Order) -> None:
        self.order, self.step, self._patched, self._busy = order, 0, False, False
        self._waiting = dict(enumerate(order.strikes))
        self._counts = dict.fromkeys(self._waiting, 0)
        self._limit: tuple[int, int] | None = None

    def install(self) -> None:
        """From now on."""
        sys.addaudithook(self._event)
        os.fsync = lambda fd: self._operation("")
        self._patch()

    # --- what the process does

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
        if path.startswith(self.order.place):
            self._operation(path)

    def _patch(self) -> None:
        """Hear of the steps and evaluations of the training loop, once the process has it."""
        trainer: Any = getattr(sys.modules.get("engine.loop.trainer"), "Trainer", None)
        if trainer is None or not hasattr(trainer, "_evaluate") or self._patched:
            return
        self._patched = True
        train_step, evaluate = trainer._train_step, trainer._evaluate

        @functools.wraps(train_step)
        def stepped(loop: Any) -> None:
            self._step(loop.step)
            train_step(loop)

        @functools.wraps(evaluate)
        def evaluated(loop: Any, **more: Any) -> None:
            from torch.nn.modules.module import register_module_forward_pre_hook

            self.step = max(self.step, loop.step)
            counting = register_module_forward_pre_hook(lambda *_: self._count("evaluation"))
            evaluate(loop, **more)
            counting.remove()
            self._count("evaluation", last=True)

        trainer._train_step, trainer._evaluate = stepped, evaluated

    def _step(self, step: int) -> None:
        self.step = step
        self._give_disk_back()
        if self.order.counts_steps:
            Path(self.order.notes, "steps").write_text(str(step))
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
                case "data" if not path.startswith(os.path.join(self.order.place, "data")):
                    continue
            if self.step >= strike.step:
                self._counts[number] += 1
            self._strike_if_due(number, strike)

    def _count(self, kind: str, *, last: bool = False) -> None:
        for number, strike in list(self._waiting.items()):
            if strike.kind == kind and self.step >= strike.step:
                self._counts[number] += 1
                self._strike_if_due(number, strike, now=last)

    # --- the strikes

    def _strike_if_due(self, number: int, strike: Strike, *, now: bool = False) -> None:
        if self.step < strike.step or self.order.rank != strike.rank:
            return
        if not now and self._counts[number] < strike.count:
            return
        self._busy = True
        del self._waiting[number]
        if self._note(number):
            self._strike(strike)
        self._busy = False

    def _note(self, number: int) -> bool:
        """Whether this process is the first to make this strike, which is noted."""
        try:
            os.close(os.open(os.path.join(self.order.notes, f"struck-{number}"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _strike(self, strike: Strike) -> None:
        me = os.getpid()
        match strike.kind:
            case "term":
                os.kill(me, signal.SIGTERM)
            case "stop":
                wake = f"sleep {strike.amount}; kill -CONT {me}; sleep 3; kill -CONT {me}"
                nothing = subprocess.DEVNULL
                subprocess.Popen(["sh", "-c", wake], stdin=nothing, stdout=nothing, stderr=nothing)
                os.kill(me, signal.SIGSTOP)
            case "disk":
                self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(strike.amount), self._limit[1]))
            case _:
                os.kill(me, signal.SIGKILL)

    def _give_disk_back(self) -> None:
        if self._limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)
            self._limit = None


def arm_job() -> None:
    """In a Python process that a command started: follow the order that is meant for its jobs."""
    file = os.environ.get(VARIABLE)
    if file and any(word.endswith(".py") for word in sys.orig_argv[1:]):
        Injector(Order.read(Path(file))).install()
