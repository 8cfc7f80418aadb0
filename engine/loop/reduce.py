"""One step's gradient: summed over micro-batches and ranks, divided once by the global weight, clipped, checked.

`flat` keeps every dense gradient as a view of one buffer: one zero, one all-reduce, one norm, one division, whatever
the number of parameters. `ddp` leaves the reduction to torch's DistributedDataParallel, which overlaps it with the
backward pass of large models; it averages, so the sum is restored here. Both give the same numbers up to rounding.

DDP has to see everything that a gradient flows through, so it wraps the whole of `task.loss`: trunk, heads and loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.state_tree import clean_name, load_weights
from engine.distributed import all_reduce_sum, world_size
from engine.task import Metrics, ParamGroup, Task


class _LossOf(nn.Module):
    """`task.loss` as the forward of one module."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module
        self._task = task

    def forward(self, micro_batch: Any) -> tuple[Tensor, Tensor | float, Metrics]:
        loss, weight, metrics = self._task.loss(micro_batch)
        used = (param for param in self.module.parameters() if param.requires_grad)
        return _PartOfAll.apply(loss, *used), weight, metrics  # type: ignore[no-untyped-call]


class _PartOfAll(torch.autograd.Function):
    """The loss itself, as if all parameters had a part in it: DDP waits for each, and a step may leave some out."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *params: Tensor) -> Tensor:
        ctx.params = len(params)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, *[None] * ctx.params


class GradientReducer:
    """Owns the dense gradients of `params`. Protocol per step: start, (loss and backward) several times, finish."""

    def __init__(self, task: Task, groups: Sequence[ParamGroup], *, parallel: str) -> None:
        self.groups = list(groups)
        self.params = [param for group in groups for param in group.dense.values()]
        self.parallel = parallel if world_size() > 1 and self.params else "flat"
        self._task = task
        self._flat: Tensor | None = None
        self._left_out: list[tuple[nn.Parameter, Tensor | None]] = []
        self._ddp: nn.parallel.DistributedDataParallel | None = None
        if self.parallel == "ddp":
            self._ddp = nn.parallel.DistributedDataParallel(_LossOf(task), broadcast_buffers=False)
        elif self.params and parallel != "fsdp":
            self._flat = self._as_views()

    def _as_views(self) -> Tensor:
        first = self.params[0]
        if any(p.dtype != first.dtype or p.device != first.device for p in self.params):
            raise TypeError("all trained parameters must share one dtype and one device")
        flat = torch.zeros(sum(p.numel() for p in self.params), dtype=first.dtype, device=first.device)
        start = 0
        for param in self.params:
            param.grad = flat[start : start + param.numel()].view_as(param)
            start += param.numel()
        return flat

    def start(self) -> None:
        """Set the gradients to zero (or drop them, where DDP owns them)."""
        for param, grad in self._left_out:
            param.grad = grad
        self._left_out = []
        if self._flat is not None:
            self._flat.zero_()
        else:
            for param in self.params:
                param.grad = None

    def accumulating(self, *, last: bool) -> AbstractContextManager[object]:
        """The context of one micro-batch's forward and backward: only the last one of a step may reduce."""
        return nullcontext() if self._ddp is None or last else self._ddp.no_sync()

    def loss(self, micro_batch: Any) -> tuple[Tensor, Tensor | float, Metrics]:
        """`task.loss`, so that its backward pass reduces where DDP is to."""
        return self._task.loss(micro_batch) if self._ddp is None else self._ddp(micro_batch)

    def leave_out(self, params: Iterable[nn.Parameter]) -> None:
        """Until the next start these have no gradient: optimizers neither move nor decay what had no part in a step."""
        for param in params:
            self._left_out.append((param, param.grad))
            param.grad = None

    @torch.no_grad()
    def finish(self, loss_sum: Tensor, weight: Tensor, *, clip: float | None) -> tuple[Tensor, Tensor]:
        """Reduce, divide by the global weight (by 1 where nothing had any), clip to the global norm `clip`.

        Returns:
            (norm before clipping, ok): scalars on the device. `ok` is 1 when the loss and every gradient of every rank
            are finite, and the same number on all ranks; optimizers leave everything as it is where it is 0.
        """
        totals = (
            torch.stack([loss_sum.detach().double(), weight.double()])
            if loss_sum.device.type != "mps"
            else (torch.stack([loss_sum.detach().float(), weight.float()]))
        )
        all_reduce_sum(totals)
        loss_total, weight_total = totals[0], totals[1].masked_fill(totals[1] == 0, 1.0)
        ok = torch.isfinite(loss_total)
        norm = torch.zeros_like(loss_total)
        if self.params:
            norm = self._reduce_dense(weight_total)
            ok = ok & torch.isfinite(norm)
            if clip is not None:
                self._scale((clip / norm.clamp(min=1e-12)).clamp(max=1.0))
        return norm, ok.to(loss_sum.dtype)

    def _reduce_dense(self, weight_total: Tensor) -> Tensor:
        if self._flat is not None:
            all_reduce_sum(self._flat)
            self._flat.div_(weight_total.to(self._flat.dtype))
            norm: Tensor = torch.linalg.vector_norm(self._flat)
            return norm
        for param in self.params:  # what no rank used has a gradient of zero, as it has in the flat buffer
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
        self._scale(world_size() / weight_total)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self._gradients())))
        return self.over_ranks(norm)

    def _scale(self, factor: Tensor) -> None:
        grads = self._gradients()
        torch._foreach_mul_(grads, factor.to(grads[0].dtype))

    def _gradients(self) -> list[Tensor]:
        if self._flat is not None:
            return [self._flat]
        return [param.grad for param in self.params if param.grad is not None]

    # Where ranks hold pieces of the parameters (sharding.py) these gather and cut; here every tensor is whole.

    def whole(self) -> AbstractContextManager[object]:
        """Inside, the module of every rank holds all weights. A collective."""
        return nullcontext()

    def over_ranks(self, norm: Tensor) -> Tensor:
        """The 2-norm of whole tensors, from that of what this rank has of them. A collective."""
        return norm

    def averaged(self) -> dict[str, nn.Parameter]:
        """The trained parameters by clean name, as optimizers see them."""
        named = self._task.module.named_parameters()
        return {clean_name(name): param for name, param in named if param.requires_grad}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put whole weights into the module. Raises: WeightsMisfit."""
        load_weights(self._task.module, weights, strict=True)

    def gathered(self, state: Any) -> Any:
        """A tree of this rank's tensors by parameter name with whole ones, on rank 0. A collective."""
        return state

    def cut(self, state: Any) -> Any:
        """The inverse."""
        return state
