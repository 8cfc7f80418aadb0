"""Measurements on the device, so that no step waits for the host: metrics, skipped steps, norms by group.

Norms (`stats_interval`) of a group G of parameters:

    grad_norm_G     of the global gradient, before clipping (their squares add up to that of train/grad_norm)
    weight_norm_G   of the weights before the step
    update_ratio_G  norm of the step's change, over weight_norm_G

All ranks hold the same gradient and weights, so all have the same numbers and none has to be reduced, unless ranks hold
pieces (parallel=fsdp). A sparse table has a weight norm only: its gradient rows belong to its optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from engine.distributed import all_reduce_sum, is_main
from engine.io import print_rank0
from engine.task import Metrics, ParamGroup

Total = Callable[[Tensor], Tensor]
"""A norm of what this rank has of some tensors -> that of the whole tensors."""


class Sent:
    """A tensor on its way to the host. From a GPU it travels beside the steps that follow, and only `read` waits."""

    def __init__(self, tensor: Tensor) -> None:
        self._held, self._event = tensor.detach() if tensor.is_cuda else tensor.detach().clone(), None
        if tensor.is_cuda:
            self._held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._held.copy_(tensor.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[Any]:
        """Its numbers."""
        if self._event is not None:
            self._event.synchronize()
        return self._held.tolist()


class LogLine:
    """The figures of a step, those of the device on their way to the host together: a number, or a pair [2] of sum and
    count that stands for their quotient (None where nothing was counted)."""

    def __init__(self, step: int, figures: dict[str, Any]) -> None:
        self.step, self._figures = step, figures
        tensors = [value.detach().reshape(-1) for value in figures.values() if isinstance(value, Tensor)]
        wide = [tensor if tensor.device.type == "mps" else tensor.double() for tensor in tensors]
        self._sent = Sent(torch.cat(wide))

    def values(self) -> dict[str, Any]:
        """All of them as numbers, in the same order."""
        numbers = iter(self._sent.read())
        return {name: _number(value, numbers) for name, value in self._figures.items()}


def _number(value: Any, numbers: Iterator[float]) -> Any:
    if not isinstance(value, Tensor):
        return value
    number = next(numbers)
    if value.dim() == 0:
        return number if value.is_floating_point() else int(number)
    count = next(numbers)
    return number / count if count else None


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
            print_rank0(f"warning: the checkpoint's log window has other metrics ({other}): a new window begins")
            self._sums = None
        self._names = names

    def close(self, ok: Tensor) -> None:
        """End the open step: it counts where `ok` is 1. One that is called off (0) leaves no NaN in the window."""
        if self._sums is not None and self._step is not None:
            self._sums += torch.where(ok.to(torch.bool), self._step, 0.0)
        self.drop_step()

    def drop_step(self) -> None:
        """Forget the open step."""
        self._step = None

    def flush(self) -> dict[str, Tensor]:
        """[sum, count] over the window and over ranks by name, on the device; starts a new window."""
        if self._sums is None:
            return {}
        table = all_reduce_sum(self._sums.clone())
        self._sums.zero_()
        return dict(zip(self._names, table.unbind(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The open window, summed over ranks (so that any number of ranks can resume it). A collective."""
        if self._sums is None:
            return {}
        return {"names": self._names, "sums": all_reduce_sum(self._sums.clone())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume a saved window: rank 0 takes all of it."""
        if state:
            names, sums = list(state["names"]), state["sums"].to(self._device, self._dtype)
            if not all(isinstance(name, str) for name in names) or sums.shape != (len(names), 2):
                raise ValueError(f"the open window has {len(names)} names and sums {list(sums.shape)}")
            self._names, self._stored = names, True
            self._sums = sums.clone() if is_main() else torch.zeros_like(sums)


class SkippedSteps:
    """`counts` [2] on the device: steps called off so far, and in a row up to now.

    Reading them would make every step wait for the GPU. There the count of the step before is read instead, which is
    on its way while the newest step runs; it is the same number on all ranks, so they all give up at the same step.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(2, dtype=torch.float32, device=device)
        self._sent: list[Sent] = []

    def add(self, ok: Tensor) -> None:
        """Count a step: `ok` is 0 where it was called off, else 1."""
        bad = 1 - ok.to(self.counts.dtype)
        self.counts.copy_(torch.stack([self.counts[0] + bad, (self.counts[1] + bad) * bad]))

    def send(self) -> None:
        """Let the newest count travel to the host, for a later step to read."""
        if self.counts.device.type == "cuda":
            self._sent = [*self._sent[-1:], Sent(self.counts)]

    def in_a_row(self, *, exact: bool) -> int:
        """Steps called off in a row, up to this step; on a GPU up to the one before, unless it is to be `exact`."""
        if exact or self.counts.device.type != "cuda":
            return int(self.counts[1])
        return int(self._sent[0].read()[1]) if len(self._sent) > 1 else 0

    def total(self) -> Tensor:
        """Steps called off so far, a whole number on the device."""
        return self.counts[0].long()

    def load(self, counts: Tensor) -> None:
        """Resume stored counts (an earlier version stored a third one)."""
        self.counts = counts[:2].to(self.counts)


def learning_rates(groups: Mapping[str, ParamGroup], factor: float) -> dict[str, float]:
    """`train/lr`, the highest rate of the dense groups at `factor` times their peaks; `train/lr_G` of a sparse table,
    and of the first dense group G of each other rate (the rest beside Muon, a scaled encoder)."""
    dense = {group.lr: name for name, group in reversed([*groups.items()]) if group.table is None}
    rates = {f"train/lr_{name}" if lr < max(dense) else "train/lr": lr * factor for lr, name in dense.items()}
    return rates | {f"train/lr_{name}": g.lr * factor for name, g in groups.items() if g.table is not None}


class GroupStats:
    """`before` and `after` around the optimizers of a step that is due; `flush` at the next log line."""

    def __init__(
        self, groups: Iterable[ParamGroup], interval: int | None, over_ranks: Total = lambda norm: norm
    ) -> None:
        self.interval, self._over_ranks = interval, over_ranks
        self.params = {g.name: list(g.dense.values()) for g in groups if g.table is None}
        self.tables = {g.name: g.table for g in groups if g.table is not None}
        self.values: dict[str, Tensor] = {}
        self._old: dict[str, list[Tensor]] = {}

    def due(self, step: int) -> bool:
        """Whether the norms of this step are taken."""
        return self.interval is not None and step % self.interval == 0

    @torch.no_grad()
    def before(self, norm: Tensor, clip: float | None) -> None:
        """Once the gradient is complete; `norm` is the global one before it was clipped to `clip`."""
        clipped = 1.0 if clip is None else (clip / norm.clamp(min=1e-12)).clamp(max=1.0)
        for name, params in self.params.items():
            self.values[f"grad_norm_{name}"] = (
                self._norm([p.grad for p in params if p.grad is not None], norm) / clipped
            )
            self.values[f"weight_norm_{name}"] = self._norm([p.detach() for p in params], norm)
            self._old[name] = [p.detach().clone() for p in params]
        for name, table in self.tables.items():
            self.values[f"weight_norm_{name}"] = self._norm([table.weights], norm)

    @torch.no_grad()
    def after(self) -> None:
        """Once the optimizers have stepped."""
        for name, old in self._old.items():
            moved = torch._foreach_sub([p.detach() for p in self.params[name]], old)
            weight = self.values[f"weight_norm_{name}"]
            self.values[f"update_ratio_{name}"] = self._norm(list(moved), weight) / weight.clamp(min=1e-12)
        self._old.clear()

    def _norm(self, tensors: list[Tensor], like: Tensor) -> Tensor:
        """The common 2-norm, in the dtype and on the device of the scalar `like`; 0 of nothing."""
        if not tensors:
            return torch.zeros_like(like)
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))).to(like)
        return self._over_ranks(norm)

    def flush(self) -> dict[str, Tensor]:
        """The newest norms since the last call, on the device; none if no step was due."""
        values, self.values = self.values, {}
        return values

    def state_dict(self) -> dict[str, Tensor]:
        """The norms that the next log line will report."""
        return dict(self.values)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse; names that this version does not have are dropped with the groups they belonged to."""
        if any(not isinstance(value, Tensor) or value.numel() != 1 for value in state.values()):
            raise ValueError("the norms kept for the next log line are not numbers by name")
        self.values = dict(state)
