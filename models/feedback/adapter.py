"""Base class for adapters of a frozen base: a plain pass, then passes with deltas, each computed from the last one.

    h⁰ = base(x);  δⁱ = adapter(x, hⁱ⁻¹);  hⁱ = base(x; δⁱ)  for i = 1 .. k

with `accumulate` δⁱ = δⁱ⁻¹ + adapter(x, hⁱ⁻¹). The base is passed as an argument, so it is not part of the adapter's
parameters, gradients or checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.feedback.adapter_config import AdapterShape
from models.feedback.base import BaseLM, base_flops, group_parameters
from models.feedback.batch import BaseOutput, Batch, FeedbackOutput


class Adapter(nn.Module, ABC):
    """`adapter(base, batch)` -> FeedbackOutput; a subclass computes the deltas."""

    FAMILY: ClassVar[str] = "feedback"
    DATA_MODE: ClassVar[str] = "frozen_base"

    shape: AdapterShape
    n_passes = 1
    loss_shares: str = "last"
    detach_between = True
    reads_base = False
    """Whether `make_delta` reads the previous pass."""
    reads_states = False
    """Whether `make_delta` reads the hidden states of the previous pass."""
    reads_gradient = False
    """Whether `make_delta` runs a pass of its own, with other tokens masked."""

    @abstractmethod
    def make_delta(
        self, base: BaseLM, batch: Batch, previous: BaseOutput | None, previous_delta: Any
    ) -> tuple[Any, Tensor | None]:
        """(delta for the next pass, penalty or None) from the previous pass and its delta.

        `previous` may be None if `reads_base` is false.
        """

    @abstractmethod
    def static_delta(self, base: BaseLM) -> Any:
        """The delta without its input-dependent part."""

    def forward(self, base: BaseLM, batch: Batch, passes: int | None = None) -> FeedbackOutput:
        """Run the plain pass, without gradient, then `passes` passes with deltas (default: `n_passes`)."""
        count = self.n_passes if passes is None else passes
        with torch.no_grad():
            outputs = [base(batch.inputs, batch.real, keep_states=self.reads_states)]
        deltas: list[Any] = []
        penalties: list[Tensor] = []
        for number in range(1, count + 1):
            previous, previous_delta = outputs[-1], deltas[-1] if deltas else None
            if self.detach_between and previous_delta is not None:
                previous, previous_delta = detach_output(previous), previous_delta.detach()
            delta, penalty = self.make_delta(base, batch, previous, previous_delta)
            deltas.append(delta)
            penalties += [] if penalty is None else [penalty]
            states = self.reads_states and number < count
            outputs.append(base(batch.inputs, batch.real, delta, keep_states=states))
        penalty = torch.stack(penalties).mean() if penalties else None
        return FeedbackOutput(tuple(outputs), tuple(deltas), pass_shares(self.loss_shares, count), penalty)

    def adapted(self, base: BaseLM, batch: Batch) -> tuple[BaseOutput, Any]:
        """(the last pass, its delta), for inference: skips the plain pass if nothing reads it."""
        if self.reads_base:
            output = self(base, batch)
            return output.final, output.deltas[-1]
        delta, _ = self.make_delta(base, batch, None, None)
        return base(batch.inputs, batch.real, delta), delta

    @property
    def base_passes(self) -> int:
        """Forward passes of the base in `adapted`: the plain one if it is read, one per delta, and those for
        gradients."""
        return self.reads_base + self.n_passes * (1 + self.reads_gradient)

    def forward_flops(self, base: BaseLM, rows: int, length: int) -> float:
        """FLOPs from the tokens to the logits of the last pass, for `rows` rows of `length` positions. The plain pass
        counts if it is read."""
        body = base.forward_flops(rows, length, head=False)
        recomputed = (self.n_passes - 1 + self.reads_base) * body
        changes = self.n_passes * (self.change_flops(rows, length) + self.reading_flops(rows, length))
        earlier = sum(range(self.n_passes)) * self.kept_flops(rows, length)
        return base.forward_flops(rows, length) + recomputed + changes + earlier

    def flops(self, rows: int) -> dict[str, float]:
        """FLOPs for `rows` rows of block_size positions: `eval`, all passes; `train`, also the gradients of the passes
        that the loss reaches, through a base whose weights need none."""
        base, passes = self.shape.base, self.n_passes
        vocab, length = self.shape.text.rows(base.vocab_multiple), base.block_size
        body, change = base_flops(base, vocab, rows, length, head=False), self.change_flops(rows, length)
        head = base_flops(base, vocab, rows, length) - body
        earlier = self.kept_flops(rows, length)
        scored = [number for number, share in enumerate(pass_shares(self.loss_shares, passes)) if share > 0]
        reached = scored if self.detach_between else list(range(passes))  # pass `number` has that many earlier changes
        forward = body + passes * (body + change + self.reading_flops(rows, length)) + sum(range(passes)) * earlier
        back = len(reached) * (body + 2 * change) + 2 * sum(reached) * earlier
        return {"train": forward + back + 2 * len(scored) * head, "eval": forward + head}

    @abstractmethod
    def change_flops(self, rows: int, length: int) -> float:
        """FLOPs of computing the change of one pass and applying it once, in low-rank form."""

    def kept_flops(self, rows: int, length: int) -> float:
        """FLOPs of applying the change of an earlier pass in a later one, if changes accumulate."""
        return 0.0

    def reading_flops(self, rows: int, length: int) -> float:
        """FLOPs of the conditioning of each change, beyond the pass itself; without gradient."""
        return 0.0

    def gates(self) -> Tensor | None:
        """The gates γ of the input-dependent changes, if there are any."""
        return None

    def param_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Parameters by group: matrix (the only ones with weight decay), embedding, scalar."""
        return group_parameters(self)

    def blocks(self) -> list[nn.Module]:
        """Compile units."""
        return []

    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters())


def detach_output(output: BaseOutput) -> BaseOutput:
    """A copy of the pass, detached."""
    return replace(output, hidden=output.hidden.detach(), states=tuple(state.detach() for state in output.states))


def pass_shares(kind: str, count: int) -> tuple[float, ...]:
    """Weights of passes 1 .. count in the loss: only the last, uniform, or linear in the pass number."""
    if kind == "last":
        return (0.0,) * (count - 1) + (1.0,) * min(count, 1)
    weights = [1.0 if kind == "uniform" else float(number) for number in range(1, count + 1)]
    return tuple(weight / sum(weights) for weight in weights)
