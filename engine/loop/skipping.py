"""Steps that are called off because their loss or gradient is not finite: counted on the device, judged after each."""

from __future__ import annotations

import torch
from torch import Tensor


class SkippedSteps:
    """`counts` [2] on the device: steps called off so far, and in a row up to now.

    Reading them would make every step wait for the GPU. There the count of the step before is read instead, which is
    on its way while the newest step runs; it is the same number on all ranks, so they all give up at the same step.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(2, dtype=torch.float32, device=device)
        self._sent: list[tuple[Tensor, torch.cuda.Event]] = []

    def add(self, ok: Tensor) -> None:
        """Count a step: `ok` is 0 where it was called off, else 1."""
        bad = 1 - ok.to(self.counts.dtype)
        self.counts = torch.stack([self.counts[0] + bad, (self.counts[1] + bad) * bad])
        if self.counts.device.type == "cuda":
            held = torch.empty(2, pin_memory=True)
            held.copy_(self.counts, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._sent = [*self._sent[-1:], (held, event)]

    def in_a_row(self, *, exact: bool) -> int:
        """Steps called off in a row, up to this step; on a GPU up to the one before, unless it is to be `exact`."""
        if exact or self.counts.device.type != "cuda":
            return int(self.counts[1])
        if len(self._sent) < 2:
            return 0
        held, event = self._sent[0]
        event.synchronize()
        return int(held[1])

    def total(self) -> int:
        """Steps called off so far."""
        return int(self.counts[0])

    def load(self, counts: Tensor) -> None:
        """Go on with stored counts (an earlier version stored a third one)."""
        self.counts = counts[:2].to(self.counts)
