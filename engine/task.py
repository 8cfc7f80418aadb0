"""The Task protocol: what one training step means for a family of models.

The trainer knows nothing about models or data. It asks a task for the micro-batches of a step, back-propagates the loss
of each, reduces and divides by the global weight, steps the optimizers, and asks the task to evaluate.
The same methods fit a recursive model (its carry is task state), a plain language model (its only state is a position),
a hypernetwork over a frozen base (the base is not among the parameter groups) and reinforcement learning
(`micro_batches` rolls out and fills a replay buffer, which is task state).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.checkpoint.state_tree import RowSharded as RowSharded
from engine.errors import Interrupted as Interrupted, UsageError as UsageError
from engine.loop.schedule import Plateau

Metrics = Mapping[str, tuple[Tensor, Tensor]]
"""name -> (sum, count), both scalars on the device. Division happens once, after the reduction over ranks."""


class SparseTable(Protocol):
    """A table of which a step uses few rows: updated by its own optimizer, never part of the dense gradient."""

    weights: Tensor

    def take_pending(self) -> tuple[Tensor, Tensor]:
        """Return row indices [n] and gradients [n, E] of all micro-batches since the last call, and clear them."""


@dataclass(kw_only=True)
class ParamGroup:
    """Parameters that share one optimizer and one peak learning rate."""

    name: str
    optimizer: str
    """A name of `engine.optim`."""
    lr: float
    """Peak learning rate; the schedule multiplies it."""
    params: dict[str, nn.Parameter] | SparseTable
    """Named dense parameters, or one sparse table."""
    options: dict[str, Any] = field(default_factory=dict)
    fused_rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Rows of each matrix in a parameter that stacks several: the optimizer treats each matrix on its own."""

    @property
    def dense(self) -> dict[str, nn.Parameter]:
        """The named parameters; empty for a sparse table."""
        return self.params if isinstance(self.params, dict) else {}

    @property
    def table(self) -> SparseTable | None:
        """The sparse table, or None."""
        return None if isinstance(self.params, dict) else self.params

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(param.numel() for param in self.dense.values()) + (
            0 if self.table is None else self.table.weights.numel()
        )


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a task may know about the machine and the run."""

    device: torch.device
    dtype: torch.dtype
    """The compute dtype that `auto` resolves to on this device."""
    attention: str
    """auto | sdpa | flash | math"""
    seed: int
    accumulation: int
    rank: int
    world_size: int
    stop_requested: Callable[[], bool] = field(default=lambda: False)
    """True once a signal has asked the run to stop. A collective, with the same answer on all ranks."""

    def micro_rows(self, global_rows: int, key: str) -> int:
        """Rows of one micro-batch. Raises: UsageError, naming the batch size by `key`, if it does not divide evenly."""
        parts = self.world_size * self.accumulation
        if global_rows % parts:
            raise UsageError(
                f"{key}={global_rows} does not divide into {self.world_size} ranks x accumulation={self.accumulation}: "
                f"choose a multiple of {parts}, e.g. {key}={max(parts, round(global_rows / parts) * parts)}"
            )
        return global_rows // parts


class Task(Protocol):
    """One family's training step. All methods are called on every rank, in the same order."""

    module: nn.Module
    """The trained module; checkpoints use its names. Everything that a gradient flows through, heads included, is
    computed inside `loss`: under `parallel=ddp` the forward of the wrapped module is all of `loss`."""

    def micro_batches(self, step: int) -> Iterable[Any]:
        """Draw the micro-batches of step `step` (1-based): feed slots, roll out. No gradient; collectives allowed."""

    def loss(self, micro_batch: Any) -> tuple[Tensor, Tensor | float, Metrics]:
        """Return (summed loss, weight to divide it by, metrics) for one micro-batch of this rank."""

    def after_step(self) -> None:
        """Called once after the optimizers have stepped (and the averaged weights are updated)."""

    def evaluate(self, *, final: bool) -> dict[str, float | None]:
        """Evaluate on the held-out split; `final` is the last evaluation of the run. Same result on every rank."""

    def param_groups(self) -> list[ParamGroup]:
        """What is trained, by which optimizer."""

    # Optional: a task whose micro-batches all have the same shapes may set `compiles`, the mode of `compile=auto` on
    # CUDA: "block" if each block runs many times in a step, else "full".

    # Optional: a task whose steps `step_graph` may capture has `not_captured`, the reason why they cannot be captured
    # here, or "". Then `captured_as(step) -> Hashable | None` is called once the micro-batches of that step are drawn:
    # steps with equal values and equal shapes of the micro-batches run the same device operations; None is a step in
    # which the host takes part. `carried() -> list[Tensor]` returns the tensors that a step passes to the next (its
    # carry), and `carry(tensors)` replaces them. Micro-batches must be tensors, numbers, text or None in plain dicts,
    # lists and tuples; with anything else, steps run eagerly.

    # Optional: a task whose steps may not use all parameters has `left_out() -> Iterable[nn.Parameter]`: those unused
    # in the newest step, the same on every rank.

    def state_dict(self) -> dict[str, Any]:
        """Everything but weights and optimizers: nested dicts and lists of tensors, scalars, `RowSharded` tensors."""

    # Optional: a task that logs tables with the metrics of an evaluation has
    # `tables() -> dict[str, list[dict[str, Any]]]`.

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse: `RowSharded` leaves arrive already sliced to this rank's rows."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation, for `TrainingPlan.report`."""

    step: int
    results: Mapping[str, float | None]
    best: tuple[float, int] | None
    """Best value of the primary metric so far, and its step."""
    step_ms: float | None
    """Mean time of a training step at the last log line of this process."""


@dataclass(kw_only=True)
class TrainingPlan:
    """A task, and what the trainer needs to know about the run: length, schedule, evaluations, files.

    A script's `build` returns it.
    """

    task: Task
    total_steps: int
    """The horizon: the last step of a run without `max_steps`, which schedules are relative to."""
    schedule: Callable[[int], float]
    """Step (1-based) -> factor on every group's peak learning rate."""
    eval_steps: Collection[int] = ()
    """The steps followed by an evaluation: a range, or another collection that need not list them all."""
    metric_steps: Collection[int] | None = None
    """Those of `eval_steps` that measure the primary metric, if not all do; only these count for early stopping."""
    final_eval: bool = True
    """Whether an evaluation follows the last step in any case."""
    final_like_others: bool = True
    """Whether the final evaluation covers the same data as the others. If not, they are never compared."""
    final_adds: bool = False
    """Whether the final evaluation has further metrics (of a test split, e.g.), so that no ordinary one replaces it."""
    covers: str = ""
    """The data that the primary metric of an ordinary evaluation covers; if a resume changes it, the best result, early
    stopping and a plateau start over."""
    plateau: Plateau | None = None
    """The evaluation counter of a plateau schedule; part of the checkpoint."""
    checkpoint_every_eval: bool = True
    splits: Mapping[str, str] = field(default_factory=dict)
    """First part of an evaluation metric's name -> its data and their purpose: printed, and in summary.json."""
    primary_metric: str = "eval/loss"
    metric_mode: str = "min"
    batch_key: str = "batch_size"
    """The config key that an out-of-memory message names."""
    batch_rows: int = 1
    """Rows of the global batch, for throughput."""
    steps_per_epoch: int | None = None
    """Log lines in the console then also name the epoch."""
    step_counts: Mapping[str, int] = field(default_factory=dict)
    """Further counts of a step by name (tokens, e.g.), also reported per second."""
    cards: list[dict[str, Any]] = field(default_factory=list)
    """Data cards, kept in the run directory."""
    start: Callable[[], None] | None = None
    """Loads pretrained weights into the model; called for a new run, not for one that resumes."""
    report: Callable[[Evaluation], Mapping[str, str | bytes]] | None = None
    """Called on rank 0 after an evaluation, with its weights in place: file name -> content for the run directory."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Name of a link in the run directory -> the checkpoint it points to: best, latest or step_N."""
    keep_every: int | None = None
    """Keep the checkpoints of multiples of this step, unless the config sets keep_every."""

    def last_step(self, max_steps: int | None) -> int:
        """The last step of a run of at most `max_steps`."""
        return min(self.total_steps, max_steps or self.total_steps)
