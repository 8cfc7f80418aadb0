"""One learned vector per puzzle, stored as a buffer: the table may have a million rows of which a step
touches a few.

The table is not a parameter: no dense gradient, no Adam moments, no EMA. A training pass gathers its rows into a
fresh leaf tensor; after the backward pass the optimizer asks `take_pending()` for the identifiers and their
gradient rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SparseEmbedding(nn.Module):
    """Table `weights` [N, E], float32, zeros at the start, persistent. Any batch size works."""

    weights: Tensor

    def __init__(self, num_embeddings: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(num_embeddings, dim))
        self.pending: list[tuple[Tensor, Tensor]] = []

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B] int -> rows [B, E] in the table's dtype.

        With gradients on in training mode the rows are a new leaf that is kept in `pending` (one entry per
        micro-batch).
        """
        rows = self.weights[ids.long()]
        if self.training and torch.is_grad_enabled():
            rows = rows.detach().requires_grad_()
            self.pending.append((ids, rows))
        return rows

    def take_pending(self) -> tuple[Tensor, Tensor]:
        """Hand over (ids [n] int32, gradient rows [n, E]) of all passes since the last call, and forget them.

        A pass that took part in no backward counts as zero gradient.
        """
        taken, self.pending = self.pending, []
        if not taken:
            return self.weights.new_empty(0, dtype=torch.int32), self.weights.new_empty(0, self.weights.shape[1])
        ids = torch.cat([ids for ids, _ in taken])
        grads = [torch.zeros_like(rows) if rows.grad is None else rows.grad for _, rows in taken]
        return ids, torch.cat(grads)
