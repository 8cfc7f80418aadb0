"""Metrics of a log window, summed on the device: no step waits for the host, one transfer per window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.distributed import all_reduce_sum, is_main
from engine.io import print_rank0
from engine.task import Metrics


class MetricWindow:
    """Sums (sum, count) pairs by name until `flush`; a step counts once it is closed. Names never change."""

    def __init__(self, device: torch.device) -> None:
        # float64 so that long windows lose nothing; mps has no float64.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._device = device
        self._names: list[str] = []
        self._stored = False  # whether the names come from a checkpoint, and no step has confirmed them
        self._sums: Tensor | None = None
        self._step: Tensor | None = None

    def add(self, metrics: Metrics) -> None:
        """Add one micro-batch's pairs to the open step."""
        names = list(metrics)
        if self._stored and names != self._names:
            self._take(names)
        if self._names and names != self._names:
            raise KeyError(f"a task reported the metrics {names} after {self._names}: names must not change in a run")
        pairs = torch.stack([torch.stack([s.detach(), c.to(s.dtype)]).to(self._dtype) for s, c in metrics.values()])
        self._stored = False
        if self._sums is None:
            self._names = names
            self._sums = torch.zeros(len(names), 2, dtype=self._dtype, device=self._device)
        self._step = pairs if self._step is None else self._step + pairs

    def _take(self, names: list[str]) -> None:
        """Let the stored window have the `names` of this run; sums of other metrics are worth no refused resume."""
        if self._sums is not None and set(names) == set(self._names):
            self._sums = self._sums[[self._names.index(name) for name in names]]
        else:
            other = ", ".join(sorted(set(names) ^ set(self._names)))[:200]
            print_rank0(f"warning: the checkpoint's log window has other metrics ({other}): the window begins anew")
            self._sums = None
        self._names = names

    def close(self, ok: Tensor) -> None:
        """End the open step: it counts where `ok` is 1. One that is called off (0) leaves no NaN in the window."""
        if self._sums is not None and self._step is not None:
            self._sums += torch.where(ok.to(torch.bool), self._step, 0.0)
        self._step = None

    def flush(self) -> dict[str, float | None]:
        """Means over the window and over ranks (None where nothing was counted); starts a new window."""
        if self._sums is None:
            return {}
        table = all_reduce_sum(self._sums.clone()).cpu()
        self._sums.zero_()
        return {name: (s / c if c else None) for name, (s, c) in zip(self._names, table.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """The open window, summed over ranks (so that any number of ranks can go on with it). A collective."""
        if self._sums is None:
            return {}
        return {"names": self._names, "sums": all_reduce_sum(self._sums.clone())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved window: rank 0 takes all of it."""
        if state:
            names, sums = list(state["names"]), state["sums"].to(self._device, self._dtype)
            if not all(isinstance(name, str) for name in names) or sums.shape != (len(names), 2):
                raise ValueError(f"the open window has {len(names)} names and sums {list(sums.shape)}")
            self._names, self._stored = names, True
            self._sums = sums.clone() if is_main() else torch.zeros_like(sums)
