"""One step's gradient: summed over micro-batches and ranks, divided once by the global weight, clipped, checked.

`flat` keeps all dense gradients as views of one buffer: one fill, one all-reduce, one norm, one division, whatever the
number of parameters. `ddp` leaves the reduction to torch's DistributedDataParallel, which overlaps it with the backward
pass of large models; it averages, so the sum is restored here. Both give the same numbers up to rounding.

DDP has to see everything that a gradient flows through, so it wraps all of `task.loss`: trunk, heads and loss.
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


class _LossModule(nn.Module):
    """`task.loss` as the forward of one module."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module
        self._task = task

    def forward(self, micro_batch: Any) -> tuple[Tensor, Tensor | float, Metrics]:
        loss, weight, metrics = self._task.loss(micro_batch)
        used = (param for param in self.module.parameters() if param.requires_grad)
        return _DependOnAll.apply(loss, *used), weight, metrics  # type: ignore[no-untyped-call]


class _DependOnAll(torch.autograd.Function):
    """Identity on the loss that makes it depend on all parameters: DDP waits for each, and a step may not use some."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *params: Tensor) -> Tensor:
        ctx.param_count = len(params)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, *[None] * ctx.param_count


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
            self._ddp = nn.parallel.DistributedDataParallel(_LossModule(task), broadcast_buffers=False)
        elif self.params and parallel != "fsdp":
            self._flat = self._flatten_grads()

    def _flatten_grads(self) -> Tensor:
        first = self.params[0]
        flat = torch.zeros(sum(p.numel() for p in self.params), dtype=first.dtype, device=first.device)
        start = 0
        for param in self.params:
            param.grad = flat[start : start + param.numel()].view_as(param)
            start += param.numel()
        return flat

    def start(self) -> None:
        """Zero the gradients (set them to None where DDP owns them)."""
        for param, grad in self._left_out:
            param.grad = grad
        self._left_out = []
        if self._flat is not None:
            self._flat.zero_()
        else:
            for param in self.params:
                param.grad = None

    def accumulating(self, *, last: bool) -> AbstractContextManager[object]:
        """Context of one micro-batch's forward and backward: DDP reduces only in the last one of a step."""
        return nullcontext() if self._ddp is None or last else self._ddp.no_sync()

    def loss(self, micro_batch: Any) -> tuple[Tensor, Tensor | float, Metrics]:
        """`task.loss`, through DDP where that reduces in the backward pass."""
        return self._task.loss(micro_batch) if self._ddp is None else self._ddp(micro_batch)

    def leave_out(self, params: Iterable[nn.Parameter]) -> None:
        """Drop the gradients of `params` until the next start: optimizers neither update nor decay them."""
        for param in params:
            self._left_out.append((param, param.grad))
            param.grad = None

    @torch.no_grad()
    def finish(self, loss_sum: Tensor, weight: Tensor, *, clip: float | None) -> tuple[Tensor, Tensor]:
        """Reduce, divide by the global weight (by 1 if it is 0), clip to the global norm `clip`.

        Returns:
            (norm before clipping, ok): scalars on the device. `ok` is 1 if the loss and all gradients of all ranks are
            finite, else 0, and the same on all ranks; if it is 0, optimizers change nothing.
        """
        dtype = torch.float32 if loss_sum.device.type == "mps" else torch.float64
        totals = torch.stack([loss_sum.detach().to(dtype), weight.to(dtype)])
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
            return torch.linalg.vector_norm(self._flat)  # type: ignore[no-any-return]
        for param in self.params:  # unused parameters get a gradient of zero, as in the flat buffer
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
        self._scale(world_size() / weight_total)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self._gradients())))
        return self.global_norm(norm)

    def _scale(self, factor: Tensor) -> None:
        grads = self._gradients()
        torch._foreach_mul_(grads, factor.to(grads[0].dtype))

    def _gradients(self) -> list[Tensor]:
        if self._flat is not None:
            return [self._flat]
        return [param.grad for param in self.params if param.grad is not None]

    # Overridden where ranks hold shards of the parameters (sharding.py); here all tensors are full.

    def unsharded(self) -> AbstractContextManager[object]:
        """Context in which the module of every rank holds the full weights. A collective."""
        return nullcontext()

    def global_norm(self, norm: Tensor) -> Tensor:
        """The 2-norm of the full tensors, from the `norm` of this rank's shards. A collective."""
        return norm

    def trained_params(self) -> dict[str, nn.Parameter]:
        """The trained parameters by clean name, as optimizers see them."""
        named = self._task.module.named_parameters()
        return {clean_name(name): param for name, param in named if param.requires_grad}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load full weights into the module. Raises: WeightsMisfit."""
        load_weights(self._task.module, weights)

    def gather(self, state: Any) -> Any:
        """A tree of tensors by parameter name, its shards replaced by full tensors on rank 0. A collective."""
        return state

    def shard(self, state: Any) -> Any:
        """The inverse: full tensors replaced by this rank's shards."""
        return state
