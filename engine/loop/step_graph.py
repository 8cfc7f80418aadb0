"""One CUDA graph of a whole optimizer step: forward, backward, clip, optimizers, averaged weights, carry.

A small model's step is hundreds of kernels that take longer to launch than to run; a graph launches them at once. It
reads from static buffers: the micro-batches, the factor of the schedule, and the state that a step passes to the next
(a carry), which the graph itself copies back. Decisions of the host are not captured, so a task declares which of its
steps are the same (`captured_as`, engine/task.py); all others run eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.config import RunConfig
from engine.distributed import world_size
from engine.errors import UsageError
from engine.io import print_rank0

if TYPE_CHECKING:
    from engine.loop.trainer import Trainer

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Captures a function and returns what replays its device operations. Capturing itself runs none of them."""

WARM_UP = 3
"""Eager steps of one form before it is captured: optimizers create their state, compilers and libraries choose kernels.
"""
MIN_STEPS = 50
"""Steps left from which `auto` captures: capturing takes about as long as a dozen steps."""


def record_cuda(body: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of `body`; other threads (a checkpoint being written, e.g.) may use the device meanwhile."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        body()
    return graph.replay


class StepGraph:
    """The graph of `trainer`'s current form of step, captured after the warm-up of that form."""

    def __init__(self, trainer: Trainer, record: Record = record_cuda) -> None:
        self._trainer, self._record = trainer, record
        self._form: Any = None
        self._warm = 0
        self._replay: Callable[[], None] | None = None
        self._inputs: list[Tensor] = []
        self._carried: list[Tensor] = []
        self._factor = torch.zeros((), dtype=torch.float64, device=trainer.runtime.device)
        self.works = True
        """False once a capture has failed: all further steps run eagerly."""

    def step(self, number: int, micro_batches: list[Any], factor: float) -> bool:
        """Replay the graph for step `number`; False if the step has to run eagerly."""
        task: Any = self._trainer.task
        kind: Hashable | None = task.captured_as(number) if self.works else None
        if kind is None:
            return False
        try:
            form = (kind, _map(micro_batches, lambda tensor: (tensor.dtype, tuple(tensor.shape))))
        except TypeError as error:
            self._give_up(error)
            return False
        if form != self._form:
            self._form, self._warm, self._replay = form, 0, None
        if self._replay is None:
            self._warm += 1
            if self._warm <= WARM_UP:
                return False
            self._replay = self._capture(micro_batches)
            if self._replay is None:
                return False
        self._fill(micro_batches, factor)
        self._replay()
        for optimizer in self._trainer.optimizers.values():
            optimizer.count_step()
        return True

    def _fill(self, micro_batches: list[Any], factor: float) -> None:
        """Copy the inputs of this step into the graph's buffers."""
        task: Any = self._trainer.task
        carried = task.carried()  # new tensors if the previous step ran eagerly
        if any(buffer is not new for buffer, new in zip(self._carried, carried, strict=True)):
            _copy(self._carried, carried)
            task.carry(self._carried)
        _copy(self._inputs, _tensors(micro_batches))
        self._factor.fill_(factor)

    def _capture(self, micro_batches: list[Any]) -> Callable[[], None] | None:
        """Capture a step like this one; None if that fails, with the reason printed."""
        trainer = self._trainer
        task: Any = trainer.task
        inputs = _map(micro_batches, lambda tensor: tensor.detach().clone())
        before = task.carried()
        self._inputs, self._carried = _tensors(inputs), [tensor.clone() for tensor in before]
        task.carry(self._carried)

        def body() -> None:
            trainer.update(inputs, self._factor, measured=False)
            _copy(self._carried, task.carried())
            task.carry(self._carried)

        try:
            return self._record(body)
        except RuntimeError as error:  # an operation that cannot be captured; nothing has run on the device
            self._give_up(error)
            task.carry(before)
            trainer.window.drop_step()
            for group in trainer.groups.values():
                if group.table is not None:
                    group.table.take_pending()
            return None

    def _give_up(self, error: Exception) -> None:
        self.works = False
        reason, setting = (str(error).strip().splitlines() or [""])[0][:160], self._trainer.config.step_graph
        print_rank0(f"warning: step_graph={setting} failed ({reason}), training continues without")


def check_step_graph(setting: str, device: torch.device) -> None:
    """Raises: UsageError for step_graph=on on a device other than CUDA."""
    if setting == "on" and device.type != "cuda":
        raise UsageError(f"step_graph=on needs CUDA, this run is on {device}: use step_graph=auto, or step_graph=off")


def make_step_graph(trainer: Trainer) -> StepGraph | None:
    """The graph for the remaining steps of `trainer`, by `config.step_graph`; None if they run eagerly. Prints which.

    Raises:
        UsageError: step_graph=on, and the steps cannot be captured.
    """
    config: RunConfig = trainer.config
    setting, steps = config.step_graph, trainer.last_step - trainer.step
    check_step_graph(setting, trainer.runtime.device)
    if setting == "off" or trainer.runtime.device.type != "cuda" or steps <= 0:
        return None
    obstacle = _obstacle(trainer)
    if setting == "on" and obstacle:
        raise UsageError(f"step_graph=on: {obstacle}; use step_graph=auto, or step_graph=off")
    if setting == "auto" and not obstacle and steps < MIN_STEPS:
        obstacle = f"{steps:,} steps do not repay the capture ({MIN_STEPS} would); step_graph=on captures"
    if obstacle:
        print_rank0(f"step_graph  off: {obstacle}")
        return None
    print_rank0(f"step_graph  on: one graph for each form of step, after {WARM_UP} steps of it")
    return StepGraph(trainer)


def _obstacle(trainer: Trainer) -> str:
    """Why the steps of this run cannot be captured; "" if they can."""
    if world_size() > 1:
        return "it is for one process"
    if (reason := getattr(trainer.task, "not_captured", "the host takes part in this script's steps")) != "":
        return str(reason)
    waiting = [name for name, optimizer in trainer.optimizers.items() if not optimizer.capturable]
    return f"the optimizer of {waiting[0]} synchronises with the host at each step" if waiting else ""


def _map(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """A tree of dicts, lists and tuples with `function(tensor)` in place of each tensor.

    Raises: TypeError for an object that may hold further tensors.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) is dict:
        return {name: _map(value, function) for name, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_map(value, function) for value in tree)
    if tree is None or isinstance(tree, int | float | str):
        return tree
    expected = "expected tensors, numbers, text or None in dicts, lists, tuples"
    raise TypeError(f"a micro-batch holds an object of type {type(tree).__name__}: {expected}")


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in order."""
    tensors: list[Tensor] = []
    _map(tree, tensors.append)
    return tensors


def _copy(buffers: list[Tensor], tensors: list[Tensor]) -> None:
    for buffer, tensor in zip(buffers, tensors, strict=True):
        buffer.copy_(tensor)
