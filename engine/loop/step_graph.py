"""One CUDA graph of a whole optimizer step: forward, backward, clip, optimizers, averaged weights, carry.

A small model's step is hundreds of kernels that take longer to launch than to run; a graph launches them at once. What
it reads lies in buffers that stay where they are: the micro-batches, the factor of the schedule, and what a step leaves
to the next (a carry), which the graph itself copies back. What the host decides is not in it, so a task declares which
of its steps are alike (`captured_as`, engine/task.py); the others run kernel by kernel, as all do without it.
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
"""A function -> what runs its device operations again, as they were recorded. Recording itself runs none of them."""

WARM_UP = 3
"""Steps of one form before it is captured: optimizers make their state, compilers and libraries choose kernels."""
REPAID = 50
"""Steps from which `auto` captures: capturing takes about as long as a dozen steps."""


def record_cuda(body: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of `body`; other threads (a checkpoint being written, e.g.) may use the device meanwhile."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        body()
    return graph.replay


class StepGraph:
    """The graph of `trainer`'s present form of step, made once that form has had its warm-up."""

    def __init__(self, trainer: Trainer, record: Record = record_cuda) -> None:
        self._trainer, self._record = trainer, record
        self._form: Any = None
        self._warm = 0
        self._replay: Callable[[], None] | None = None
        self._inputs: list[Tensor] = []
        self._carried: list[Tensor] = []
        self._factor = torch.zeros((), dtype=torch.float64, device=trainer.runtime.device)
        self.works = True
        """False once a capture has failed: the run continues without."""

    def step(self, number: int, micro_batches: list[Any], factor: float) -> bool:
        """Take step `number` by its graph; False if it is still to be taken, kernel by kernel."""
        task: Any = self._trainer.task
        kind: Hashable | None = task.captured_as(number) if self.works else None
        if kind is None:
            return False
        try:
            form = (kind, _mapped(micro_batches, lambda tensor: (tensor.dtype, tuple(tensor.shape))))
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
        """Put what this step reads where its graph reads it."""
        task: Any = self._trainer.task
        carried = task.carried()  # new tensors where the step before was not the graph's
        if any(kept is not new for kept, new in zip(self._carried, carried, strict=True)):
            _copy(self._carried, carried)
            task.carry(self._carried)
        _copy(self._inputs, _tensors(micro_batches))
        self._factor.fill_(factor)

    def _capture(self, micro_batches: list[Any]) -> Callable[[], None] | None:
        """The graph of a step like this one, or None, with the reason printed."""
        trainer = self._trainer
        task: Any = trainer.task
        inputs = _mapped(micro_batches, lambda tensor: tensor.detach().clone())
        before = task.carried()
        self._inputs, self._carried = _tensors(inputs), [tensor.clone() for tensor in before]
        task.carry(self._carried)

        def body() -> None:
            trainer.update(inputs, self._factor, measured=False)
            _copy(self._carried, task.carried())
            task.carry(self._carried)

        try:
            return self._record(body)
        except RuntimeError as error:  # whatever capture does not allow; nothing has run on the device
            self._give_up(error)
            task.carry(before)
            trainer.window.drop_step()
            for group in trainer.groups.values():
                if group.table is not None:
                    group.table.take_pending()
            return None

    def _give_up(self, error: Exception) -> None:
        self.works = False
        reason, asked = (str(error).strip().splitlines() or [""])[0][:160], self._trainer.config.step_graph
        print_rank0(f"warning: step_graph={asked} failed ({reason}), training continues without")


def check_step_graph(asked: str, device: torch.device) -> None:
    """Raises: UsageError for step_graph=on on another device than CUDA."""
    if asked == "on" and device.type != "cuda":
        raise UsageError(f"step_graph=on needs CUDA, this run is on {device}: use step_graph=auto, or step_graph=off")


def make_step_graph(trainer: Trainer) -> StepGraph | None:
    """The graph by `config.step_graph` for the steps before `trainer`, printed; None where steps run without.

    Raises:
        UsageError: step_graph=on where it cannot be.
    """
    config: RunConfig = trainer.config
    asked, steps = config.step_graph, trainer.last_step - trainer.step
    check_step_graph(asked, trainer.runtime.device)
    if asked == "off" or trainer.runtime.device.type != "cuda" or steps <= 0:
        return None
    obstacle = _obstacle(trainer)
    if asked == "on" and obstacle:
        raise UsageError(f"step_graph=on: {obstacle}; use step_graph=auto, or step_graph=off")
    if asked == "auto" and not obstacle and steps < REPAID:
        obstacle = f"{steps:,} steps do not repay the capture ({REPAID} would); step_graph=on captures"
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


def _mapped(tree: Any, of: Callable[[Tensor], Any]) -> Any:
    """A tree of dicts, lists and tuples with `of(tensor)` in place of each tensor.

    Raises: TypeError for what may hold tensors that are not seen here.
    """
    if isinstance(tree, Tensor):
        return of(tree)
    if type(tree) is dict:
        return {name: _mapped(value, of) for name, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_mapped(value, of) for value in tree)
    if tree is None or isinstance(tree, int | float | str):
        return tree
    expected = "expected tensors, numbers, text or None in dicts, lists, tuples"
    raise TypeError(f"a micro-batch holds an object of type {type(tree).__name__}: {expected}")


def _tensors(tree: Any) -> list[Tensor]:
    """Those of a tree, in order."""
    tensors: list[Tensor] = []
    _mapped(tree, tensors.append)
    return tensors


def _copy(into: list[Tensor], tensors: list[Tensor]) -> None:
    for kept, new in zip(into, tensors, strict=True):
        kept.copy_(new)
