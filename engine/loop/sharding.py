"""`parallel=fsdp`: parameters, gradients, moments and averages are cut over the ranks (torch's fully_shard, FSDP2).

Each parameter is cut along its first dimension. Optimizers, averages and norms see this rank's pieces as plain tensors,
so an optimizer has to treat every number by itself. Blocks are gathered one at a time in a training step. Evaluations
and checkpoints gather everything; a checkpoint holds whole tensors, as that of any other run.
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
"""Optimizers in which no number depends on another."""


def make_reducer(task: Task, groups: Sequence[ParamGroup], config: RunConfig) -> GradientReducer:
    """What reduces the gradients of `groups`, as `config.parallel` has it. Raises: UsageError."""
    if config.parallel != "fsdp":
        return GradientReducer(task, groups, parallel=config.parallel)
    if unfit := [group.optimizer for group in groups if group.optimizer not in ELEMENTWISE]:
        instead = f"use parallel=ddp, or an optimizer of {', '.join(ELEMENTWISE)}"
        raise UsageError(f"parallel=fsdp: {unfit[0]} needs whole tensors, but each rank holds a shard: {instead}")
    if config.compile == "full":
        raise UsageError("parallel=fsdp gathers block by block: use compile=block, or compile=off")
    return ShardedReducer(task, groups) if world_size() > 1 else GradientReducer(task, groups, parallel="flat")


class _Root(nn.Module):
    """Runs any work on the task with the parameters that belong to no block."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module

    def forward(self, work: Callable[..., Any], *inputs: Any) -> Any:
        return work(*inputs)


class ShardedReducer(GradientReducer):
    """A `GradientReducer` of this rank's pieces: `groups` have them in place of the parameters."""

    def __init__(self, task: Task, groups: Sequence[ParamGroup]) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(next(task.module.parameters()).device.type, (world_size(),))
        self._root: Any = _Root(task)
        self._sharded: list[Any] = [fully_shard(block, mesh=mesh) for block in _separate_blocks(task.module)]
        self._sharded.append(fully_shard(self._root, mesh=mesh))
        self._root(lambda: None)  # the root knows its blocks before an evaluation calls one of them
        self._sharded[-1].reshard()
        self._whole: dict[str, Any] = {clean_name(name): param for name, param in task.module.named_parameters()}
        """DTensors by clean name, which groups have to use."""
        self._pieces = {
            name: nn.Parameter(whole.to_local().detach(), requires_grad=whole.requires_grad)
            for name, whole in self._whole.items()
        }
        """What this rank has of them: the same memory."""
        pieces = [replace(group, params={name: self._pieces[name] for name in group.dense}) for group in groups]
        super().__init__(task, pieces, parallel="fsdp")

    def loss(self, micro_batch: Any) -> tuple[Tensor, Tensor | float, Metrics]:
        result: tuple[Tensor, Tensor | float, Metrics] = self._root(self._task.loss, micro_batch)
        return result

    def leave_out(self, params: Iterable[nn.Parameter]) -> None:
        left = {id(param) for param in params}
        super().leave_out(self._pieces[name] for name, whole in self._whole.items() if id(whole) in left)

    def _reduce_dense(self, weight_total: Tensor) -> Tensor:
        for name, piece in self._pieces.items():
            grad, self._whole[name].grad = self._whole[name].grad, None
            if piece.requires_grad:
                piece.grad = torch.zeros_like(piece) if grad is None else grad.to_local()
        return super()._reduce_dense(weight_total)

    def over_ranks(self, norm: Tensor) -> Tensor:
        return all_reduce_sum(norm.square()).sqrt()

    # Whole tensors

    @contextmanager
    def whole(self) -> Iterator[None]:
        for module in self._sharded:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in self._sharded:
                module.reshard()
                module.set_reshard_after_forward(module is not self._root, recurse=False)

    def averaged(self) -> dict[str, nn.Parameter]:
        return {name: piece for name, piece in self._pieces.items() if piece.requires_grad}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        places = dict(self._task.module.named_parameters(remove_duplicate=False))
        full = {id(whole): torch.empty(whole.shape, dtype=whole.dtype) for whole in self._whole.values()}
        state = self._task.module.state_dict()  # buffers are themselves
        fill({name: full[id(places[name])] if name in places else state[name] for name in state}, weights, strict=True)
        with torch.no_grad():
            for name, piece in self._pieces.items():
                piece.copy_(self._cut(full[id(self._whole[name])]))

    def gathered(self, state: Any) -> Any:
        return self._mapped(state, self._gather)

    def cut(self, state: Any) -> Any:
        return self._mapped(state, lambda tensor, like: self._cut(tensor) if tensor.shape == like.shape else tensor)

    def _mapped(self, node: Any, change: Callable[[Tensor, Any], Tensor], name: str = "") -> Any:
        """The tree with every tensor changed that is below the name of a parameter."""
        if isinstance(node, Mapping):
            named = {key: clean_name(str(key)) for key in node}
            return {k: self._mapped(v, change, named[k] if named[k] in self._whole else name) for k, v in node.items()}
        return change(node, self._whole[name]) if isinstance(node, Tensor) and name else node

    @staticmethod
    def _gather(tensor: Any, like: Any) -> Tensor:
        """A collective for a piece of `like`, and for a DTensor. Only rank 0 keeps the numbers, on the CPU."""
        if type(tensor) is not type(like) and tensor.shape == like.to_local().shape:
            form = {"shape": like.shape, "stride": like.stride(), "run_check": False}
            tensor = like.from_local(tensor.detach(), like.device_mesh, like.placements, **form)
        if type(tensor) is type(like):
            tensor = tensor.detach().full_tensor().to("cpu" if is_main() else "meta")
        return tensor  # type: ignore[no-any-return]

    @staticmethod
    def _cut(tensor: Tensor) -> Tensor:
        """This rank's piece; the last ranks' may be smaller, or have no rows."""
        return (*tensor.chunk(world_size()), *[tensor[:0]] * world_size())[rank()]


def _separate_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a model, to be gathered one by one; none where one uses modules of another, which it then keeps
    past nn.Module's registration."""
    # those of a frozen base that the model only holds are no part of it
    blocks: list[nn.Module] = [one for one in getattr(module, "blocks", list)() if one in set(module.modules())]
    borrowed = [value for block in blocks for value in vars(block).values() if isinstance(value, nn.Module)]
    return [] if borrowed else blocks
