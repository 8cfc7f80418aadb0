"""`parallel=fsdp`: parameters, gradients, moments and averages are sharded over the ranks (torch's fully_shard, FSDP2).

Each parameter is sharded along its first dimension. Optimizers, averages and norms see this rank's shards as plain
tensors, so an optimizer must be elementwise. A training step gathers one block at a time. Evaluations and checkpoints
gather everything; a checkpoint holds full tensors, as that of any other run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.state_tree import clean_name, fill
from engine.config import RunConfig
from engine.distributed import all_reduce_sum, is_main, rank, world_size
from engine.errors import UsageError
from engine.loop.reduce import GradientReducer
from engine.task import Metrics, ParamGroup, Task

ELEMENTWISE = ("adam_atan2", "adam", "adamw", "adamax", "nadam", "radam", "adagrad", "adadelta", "rmsprop", "sgd")
"""Optimizers that update each element independently of the others."""


def make_reducer(task: Task, groups: Sequence[ParamGroup], config: RunConfig) -> GradientReducer:
    """The gradient reducer for `config.parallel`. Raises: UsageError for what parallel=fsdp does not support."""
    if config.parallel != "fsdp":
        return GradientReducer(task, groups, parallel=config.parallel)
    if unfit := [group.optimizer for group in groups if group.optimizer not in ELEMENTWISE]:
        instead = f"use parallel=ddp, or an optimizer of {', '.join(ELEMENTWISE)}"
        raise UsageError(f"parallel=fsdp: {unfit[0]} needs whole tensors, but each rank holds a shard: {instead}")
    if config.compile == "full":
        raise UsageError("parallel=fsdp gathers block by block: use compile=block, or compile=off")
    return ShardedReducer(task, groups) if world_size() > 1 else GradientReducer(task, groups, parallel="flat")


class _Root(nn.Module):
    """The FSDP root: calls a function of the task with the parameters gathered that belong to no block."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(*inputs)


class ShardedReducer(GradientReducer):
    """A `GradientReducer` over this rank's shards, which its `groups` have in place of the parameters."""

    def __init__(self, task: Task, groups: Sequence[ParamGroup]) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(next(task.module.parameters()).device.type, (world_size(),))
        self._root: Any = _Root(task)
        self._sharded: list[Any] = [fully_shard(block, mesh=mesh) for block in _separate_blocks(task.module)]
        self._sharded.append(fully_shard(self._root, mesh=mesh))
        self._root(lambda: None)  # lazy init: the root has to find its blocks before an evaluation calls one directly
        self._sharded[-1].reshard()
        self._dtensors: dict[str, Any] = {clean_name(name): param for name, param in task.module.named_parameters()}
        """The parameters by clean name, the name that groups have to use."""
        self._shards = {
            name: nn.Parameter(dtensor.to_local().detach(), requires_grad=dtensor.requires_grad)
            for name, dtensor in self._dtensors.items()
        }
        """This rank's shard of each, in the same memory."""
        sharded = [replace(group, params={name: self._shards[name] for name in group.dense}) for group in groups]
        super().__init__(task, sharded, parallel="fsdp")

    def loss(self, micro_batch: Any) -> tuple[Tensor, Tensor | float, Metrics]:
        return self._root(self._task.loss, micro_batch)  # type: ignore[no-any-return]

    def leave_out(self, params: Iterable[nn.Parameter]) -> None:
        left_out = {id(param) for param in params}
        super().leave_out(self._shards[name] for name, dtensor in self._dtensors.items() if id(dtensor) in left_out)

    def _reduce_dense(self, weight_total: Tensor) -> Tensor:
        for name, shard in self._shards.items():
            grad, self._dtensors[name].grad = self._dtensors[name].grad, None
            if shard.requires_grad:
                shard.grad = torch.zeros_like(shard) if grad is None else grad.to_local()
        return super()._reduce_dense(weight_total)

    def global_norm(self, norm: Tensor) -> Tensor:
        return all_reduce_sum(norm.square()).sqrt()

    # Full tensors

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        for module in self._sharded:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in self._sharded:
                module.reshard()
                module.set_reshard_after_forward(module is not self._root, recurse=False)

    def trained_params(self) -> dict[str, nn.Parameter]:
        return {name: shard for name, shard in self._shards.items() if shard.requires_grad}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        params = dict(self._task.module.named_parameters(remove_duplicate=False))
        full = {id(dtensor): torch.empty(dtensor.shape, dtype=dtensor.dtype) for dtensor in self._dtensors.values()}
        state = self._task.module.state_dict()  # buffers are not sharded: they are loaded in place
        fill({name: full[id(params[name])] if name in params else state[name] for name in state}, weights)
        with torch.no_grad():
            for name, shard in self._shards.items():
                shard.copy_(self._shard(full[id(self._dtensors[name])]))

    def gather(self, state: Any) -> Any:
        return self._map(state, self._gather)

    def shard(self, state: Any) -> Any:
        return self._map(state, lambda tensor, like: self._shard(tensor) if tensor.shape == like.shape else tensor)

    def _map(self, node: Any, change: Callable[[Tensor, Any], Tensor], name: str = "") -> Any:
        """The tree with `change(tensor, parameter)` for every tensor that is under the name of a parameter."""
        if isinstance(node, Mapping):
            named = {key: clean_name(str(key)) for key in node}
            return {k: self._map(v, change, named[k] if named[k] in self._dtensors else name) for k, v in node.items()}
        return change(node, self._dtensors[name]) if isinstance(node, Tensor) and name else node

    @staticmethod
    def _gather(tensor: Any, like: Any) -> Tensor:
        """The full tensor of a shard of `like` or of a DTensor (a collective). Only rank 0 keeps values, on the CPU."""
        if type(tensor) is not type(like) and tensor.shape == like.to_local().shape:
            form = {"shape": like.shape, "stride": like.stride(), "run_check": False}
            tensor = like.from_local(tensor.detach(), like.device_mesh, like.placements, **form)
        if type(tensor) is type(like):
            tensor = tensor.detach().full_tensor().to("cpu" if is_main() else "meta")
        return tensor  # type: ignore[no-any-return]

    @staticmethod
    def _shard(tensor: Tensor) -> Tensor:
        """This rank's shard; those of the last ranks may be smaller, or have no rows."""
        return (*tensor.chunk(world_size()), *[tensor[:0]] * world_size())[rank()]


def _separate_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a model, to be gathered one by one; none if one uses modules of another that it keeps outside of
    nn.Module's registration."""
    # blocks of a frozen base that the model does not register are not sharded
    blocks: list[nn.Module] = [one for one in getattr(module, "blocks", list)() if one in set(module.modules())]
    borrowed = [value for block in blocks for value in vars(block).values() if isinstance(value, nn.Module)]
    return [] if borrowed else blocks
