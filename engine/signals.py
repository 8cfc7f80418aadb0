"""SIGTERM, SIGUSR1 and Ctrl-C ask the run to stop after the current step; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch

from engine.distributed import all_reduce_sum, world_size
from engine.errors import Interrupted

WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignal:
    """Context manager that notes signals. `received` is this rank's; `agreed()` is the answer of all ranks.

    Until `training` is set there is no step to finish and nothing to save: a signal then raises Interrupted at once.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.training = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in WATCHED:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        if not self.training:
            raise Interrupted(
                f"stopped by {self.received} before the first step: nothing is lost, the same command starts"
            )

    def agreed(self) -> bool:
        """Whether any rank was signalled. A collective: every rank must ask at the same place."""
        if world_size() == 1:
            return self.received is not None
        flag = torch.tensor(float(self.received is not None))
        return bool(all_reduce_sum(flag) > 0)
