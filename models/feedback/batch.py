"""Inputs and outputs of bases and adapters. B rows, T positions, C width, V rows of the token table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of text, padded on the right, with masked inputs and labels. Ignored labels are -100."""

    inputs: Tensor
    """[B, T] int64: input tokens. MASK where a token is masked, PAD after the end."""
    labels: Tensor
    """[B, T] int64: the target token at scored positions, -100 elsewhere."""
    real: Tensor
    """[B, T] bool: False for padding, which is neither attended to nor scored."""
    readable: Tensor
    """[B, T] bool: positions that a hypernetwork may read. All text for masked diffusion; for an autoregressive base
    only the context, since the deltas affect the predictions at every later position."""
    rate: Tensor
    """[B] float32: masking probability of the row; 1 for an autoregressive base."""
    count: Tensor
    """[B] float32: number of positions that the loss of a row is averaged over; for masked diffusion all real ones."""

    def rows(self, index: slice) -> Batch:
        """Select rows."""
        return Batch(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device | str) -> Batch:
        """Copy to another device."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass
class BaseOutput:
    """Output of one forward pass of a base. Logits are computed on demand, since a loss needs them at few positions."""

    hidden: Tensor
    """[B, T, C] after the last norm."""
    head: Callable[[Tensor], Tensor]
    """hidden [..., C] -> logits [..., V], -inf for MASK, PAD and unused rows of the table."""
    states: tuple[Tensor, ...] = ()
    """The residual stream [B, T, C] before the first block and after each block, with keep_states."""

    def logits(self) -> Tensor:
        """Logits [B, T, V] of all positions."""
        return self.head(self.hidden)


@dataclass
class FeedbackOutput:
    """Passes of an adapted base. Pass 0 is the plain base, without gradient."""

    passes: tuple[BaseOutput, ...]
    deltas: tuple[Any, ...]
    """The deltas of passes 1, 2, ..."""
    loss_weights: tuple[float, ...]
    """Weights of passes 1, 2, ... in the loss."""
    penalty: Tensor | None = None
    """Scalar to add to the mean loss, with gradient."""

    @property
    def final(self) -> BaseOutput:
        """The last pass."""
        return self.passes[-1]
