"""What a base or an adapter is given, and what it returns. B rows, T positions, C width, V rows of the token table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of text, padded on the right, with what is hidden and what is scored. IGNORE is -100."""

    inputs: Tensor
    """[B, T] int64: what a model reads. MASK where a token is hidden, PAD behind the end."""
    labels: Tensor
    """[B, T] int64: the true token where it is scored, -100 elsewhere."""
    real: Tensor
    """[B, T] bool: text. Nothing else is attended to or scored."""
    readable: Tensor
    """[B, T] bool: what a hypernetwork may read. All of the text for masked diffusion; for an autoregressive base the
    context, since the deltas change what is predicted of every later position."""
    rate: Tensor
    """[B] float32: probability with which a token of the row was hidden; 1 for an autoregressive base."""
    count: Tensor
    """[B] float32: the positions that a row's loss is a mean over. All real ones for masked diffusion."""

    def rows(self, chosen: slice) -> Batch:
        """Some of the rows."""
        return Batch(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass
class BaseOutput:
    """One pass of a base. Logits are made on demand, since a loss needs those of few positions."""

    hidden: Tensor
    """[B, T, C] after the last norm."""
    head: Callable[[Tensor], Tensor]
    """hidden [..., C] -> logits [..., V], -inf for MASK, PAD and rows that stand for no token."""
    states: tuple[Tensor, ...] = ()
    """The residual stream [B, T, C] before the first block and after each of L, where it was asked for."""

    def logits(self) -> Tensor:
        """[B, T, V]."""
        return self.head(self.hidden)


@dataclass
class FeedbackOutput:
    """Passes of an adapted base. Pass 0 is the plain base, without a gradient."""

    passes: tuple[BaseOutput, ...]
    deltas: tuple[Any, ...]
    """The deltas of passes 1, 2, ...: one fewer than passes."""
    loss_weights: tuple[float, ...]
    """Shares of passes 1, 2, ... in the loss."""
    penalty: Tensor | None = None
    """A scalar to be added to the mean loss, with a gradient."""

    @property
    def final(self) -> BaseOutput:
        """The last pass."""
        return self.passes[-1]
