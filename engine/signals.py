"""Signals ask the run to stop after the current step; a second Ctrl-C stops at once.

SIGTERM, Ctrl-C, SIGUSR1 and SIGUSR2 (which Slurm and submitit send before a time limit), and SIGHUP (a closed
terminal), unless it is ignored, as under nohup. Nothing here imports torch: scripts import this module first.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from engine.errors import Interrupted

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
# torchrun forwards SIGTERM, SIGINT, SIGHUP and SIGQUIT; any other signal ends it and leaves its ranks running.
_LAUNCHER = os.getppid()
POLL_S, GRACE_S = 1.0, 5.0


def install(handler: Callable[[int, Any], Any] | int) -> dict[int, Any]:
    """Install `handler` for the signals in STOPS; return the previous handlers, for `restore`. Main thread only."""
    handled = [n for n in STOPS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in handled}


def restore(handlers: dict[int, Any]) -> None:
    """Undo an `install`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def leave_to_parent() -> None:
    """Ignore signals in a forked worker: the parent handles a signal to the process group, and then ends the worker."""
    install(signal.SIG_IGN)


def on_main_rank() -> bool:
    """Whether this process is the rank that prints: `engine.distributed.is_main` without its imports."""
    return os.environ.get("RANK", "0") in ("", "0")


def watch_launcher() -> None:
    """Send this rank SIGTERM when its torchrun is gone (any other parent may exit: a run may be disowned).

    Before training, a rank may wait for torchrun's store in C++, where signals are not handled for half an hour: then
    it exits.
    """

    def watch() -> None:
        while os.getppid() == _LAUNCHER:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        if StopSignal.current is None or not StopSignal.current.training:
            os._exit(Interrupted.exit_code)

    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()


class StopSignal:
    """Context manager that records signals. `received` is this rank's; `agreed()` is the answer of all ranks.

    Until `training` is set there is no step to finish and nothing to save: a signal raises Interrupted at once.
    """

    current: StopSignal | None = None
    """The active one."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.training = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self._previous = install(self._record)
        StopSignal.current = self
        return self

    def __exit__(self, *exc: object) -> None:
        StopSignal.current = None
        restore(self._previous)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:  # already stopping
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number).name
        if not self.training:
            raise Interrupted(
                f"stopped by {self.received} before the first step: nothing is lost, the same command starts again"
            )

    def agreed(self) -> bool:
        """Whether any rank has received a signal. A collective: every rank must call it at the same point."""
        from engine.distributed import any_rank

        return any_rank(self.received is not None)
