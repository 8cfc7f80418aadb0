"""Metrics, skipped steps and norms by group, accumulated on the device so that no step waits for the host.

Norms of a parameter group G (`stats_interval`):

    grad_norm_G     of the global gradient, before clipping (their squares add up to that of train/grad_norm)
    weight_norm_G   of the weights before the step
    update_ratio_G  norm of the step's change, over weight_norm_G

All ranks hold the same gradient and weights, so the norms need no reduction, except under parallel=fsdp, where ranks
hold shards. A sparse table has only a weight norm: its gradient rows belong to its optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from engine.distributed import all_reduce_sum, is_main
from engine.io import print_rank0
from engine.task import Metrics, ParamGroup

GlobalNorm = Callable[[Tensor], Tensor]
"""Norm over this rank's shards of some tensors -> norm over the full tensors."""


class HostCopy:
    """A copy of a tensor on the host. From a GPU it is asynchronous: later steps overlap with it, only `read` waits."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: Any = None
        if tensor.is_cuda:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._copy = tensor.detach().clone()

    def read(self) -> list[Any]:
        """The values, once the copy is complete."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy.tolist()


class LogLine:
    """The metrics of one step; those on the device are copied to the host together. A tensor is a scalar, or a pair [2]
    of sum and count that stands for their quotient (None if the count is 0)."""

    def __init__(self, step: int, metrics: dict[str, Any]) -> None:
        self.step, self._metrics = step, metrics
        tensors = [value.detach().reshape(-1) for value in metrics.values() if isinstance(value, Tensor)]
        self._copy = HostCopy(torch.cat([t if t.device.type == "mps" else t.double() for t in tensors]))

    def values(self) -> dict[str, Any]:
        """All metrics as plain numbers, in the same order."""
        numbers = iter(self._copy.read())
        return {name: _number(value, numbers) for name, value in self._metrics.items()}


def _number(value: Any, numbers: Iterator[float]) -> Any:
    if not isinstance(value, Tensor):
        return value
    number = next(numbers)
    if value.dim() == 0:
        return number if value.is_floating_point() else int(number)
    count = next(numbers)
    return number / count if count else None


class MetricWindow:
    """Accumulates (sum, count) pairs by name until `flush`; a step counts once it is closed. Names must not change."""

    def __init__(self, device: torch.device) -> None:
        # float64 so that long windows lose nothing; mps has no float64.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._device = device
        self._names: list[str] = []
        self._restored = False  # the names come from a checkpoint, and no step has confirmed them yet
        self._sums: Tensor | None = None
        self._step: Tensor | None = None

    def add(self, metrics: Metrics) -> None:
        """Add one micro-batch's pairs to the open step."""
        names = list(metrics)
        if self._restored and names != self._names:
            self._adopt_names(names)
        if self._names and names != self._names:
            raise KeyError(f"a task reported the metrics {names} after {self._names}: names must not change in a run")
        pairs = torch.stack([torch.stack([s.detach(), c.to(s.dtype)]).to(self._dtype) for s, c in metrics.values()])
        self._restored = False
        if self._sums is None:
            self._names = names
            self._sums = torch.zeros(len(names), 2, dtype=self._dtype, device=self._device)
        self._step = pairs if self._step is None else self._step + pairs

    def _adopt_names(self, names: list[str]) -> None:
        """Give the restored window this run's `names`; for other metrics begin a new window, not a refused resume."""
        if self._sums is not None and set(names) == set(self._names):
            self._sums = self._sums[[self._names.index(name) for name in names]]
        else:
            other = ", ".join(sorted(set(names) ^ set(self._names)))[:200]
            print_rank0(f"warning: the checkpoint's log window has other metrics ({other}): a new window begins")
            self._sums = None
        self._names = names

    def close(self, ok: Tensor) -> None:
        """Close the open step; it counts if `ok` is 1. A skipped step (0) leaves no NaN in the window."""
        if self._sums is not None and self._step is not None:
            self._sums += torch.where(ok.to(torch.bool), self._step, 0.0)
        self.drop_step()

    def drop_step(self) -> None:
        """Discard the open step."""
        self._step = None

    def flush(self) -> dict[str, Tensor]:
        """Return [sum, count] by name over the window and all ranks, on the device, and start a new window."""
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
        """Restore a saved window: rank 0 takes all of it."""
        if state:
            names, sums = list(state["names"]), state["sums"].to(self._device, self._dtype)
            if not all(isinstance(name, str) for name in names) or sums.shape != (len(names), 2):
                raise ValueError(f"the open window has {len(names)} names and sums {list(sums.shape)}")
            self._names, self._restored = names, True
            self._sums = sums.clone() if is_main() else torch.zeros_like(sums)


class SkippedSteps:
    """Skipped steps: `counts` [2] on the device holds their total and how many were skipped in a row up to now.

    Reading the newest counts would make every step wait for the GPU. There those of the previous step are read, copied
    while the newest step runs. They are the same on all ranks, so all give up at the same step.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(2, dtype=torch.float32, device=device)
        self._copies: list[HostCopy] = []

    def add(self, ok: Tensor) -> None:
        """Count a step: `ok` is 0 if it was skipped, else 1."""
        skipped = 1 - ok.to(self.counts.dtype)
        self.counts.copy_(torch.stack([self.counts[0] + skipped, (self.counts[1] + skipped) * skipped]))

    def send(self) -> None:
        """Start to copy the newest counts to the host, for a later step to read."""
        if self.counts.device.type == "cuda":
            self._copies = [*self._copies[-1:], HostCopy(self.counts)]

    def in_a_row(self, *, exact: bool) -> int:
        """Steps skipped in a row up to this step; on a GPU up to the previous one, unless `exact`."""
        if exact or self.counts.device.type != "cuda":
            return int(self.counts[1])
        return int(self._copies[0].read()[1]) if len(self._copies) > 1 else 0

    def total(self) -> Tensor:
        """Steps skipped so far: an integer scalar on the device."""
        return self.counts[0].long()

    def load(self, counts: Tensor) -> None:
        """Restore saved counts (older checkpoints have a third one)."""
        self.counts = counts[:2].to(self.counts)


def learning_rates(groups: Mapping[str, ParamGroup], factor: float) -> dict[str, float]:
    """Learning rates at `factor` times their peaks: `train/lr` is the highest of the dense groups; `train/lr_G` that of
    a sparse table, and of the first dense group G of each other rate (what Muon leaves out, a scaled encoder)."""
    dense = {group.lr: name for name, group in reversed([*groups.items()]) if group.table is None}
    rates = {f"train/lr_{name}" if lr < max(dense) else "train/lr": lr * factor for lr, name in dense.items()}
    return rates | {f"train/lr_{name}": g.lr * factor for name, g in groups.items() if g.table is not None}


class GroupStats:
    """Norms by parameter group: `before` and `after` around the optimizer step when due, `flush` at the log line."""

    def __init__(
        self, groups: Iterable[ParamGroup], interval: int | None, global_norm: GlobalNorm = lambda norm: norm
    ) -> None:
        self.interval, self._global_norm = interval, global_norm
        self.params = {g.name: list(g.dense.values()) for g in groups if g.table is None}
        self.tables = {g.name: g.table for g in groups if g.table is not None}
        self.values: dict[str, Tensor] = {}
        self._old: dict[str, list[Tensor]] = {}

    def due(self, step: int) -> bool:
        """Whether the norms of this step are measured."""
        return self.interval is not None and step % self.interval == 0

    @torch.no_grad()
    def before(self, norm: Tensor, clip: float | None) -> None:
        """Measure gradients and weights before the update; `norm` is the global norm before clipping to `clip`."""
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
        """Measure the update, once the optimizers have stepped."""
        for name, old in self._old.items():
            update = torch._foreach_sub([p.detach() for p in self.params[name]], old)
            weight = self.values[f"weight_norm_{name}"]
            self.values[f"update_ratio_{name}"] = self._norm(list(update), weight) / weight.clamp(min=1e-12)
        self._old.clear()

    def _norm(self, tensors: list[Tensor], like: Tensor) -> Tensor:
        """The 2-norm of all `tensors`, in the dtype and on the device of the scalar `like`; 0 for none."""
        if not tensors:
            return torch.zeros_like(like)
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))).to(like)
        return self._global_norm(norm)

    def flush(self) -> dict[str, Tensor]:
        """The newest norms since the last call, on the device; none if no step was due."""
        values, self.values = self.values, {}
        return values

    def state_dict(self) -> dict[str, Tensor]:
        """The norms that the next log line will report."""
        return dict(self.values)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse. Raises: ValueError for a value that is not a scalar tensor."""
        if any(not isinstance(value, Tensor) or value.numel() != 1 for value in state.values()):
            raise ValueError("the norms kept for the next log line are not numbers by name")
        self.values = dict(state)
