"""Sparse embedding table, one learned vector per puzzle: up to a million rows, of which a step touches a few.

The table is a buffer, not a parameter: no dense gradient, no Adam moments, no EMA. A training pass gathers its rows
into a new leaf tensor; after the backward pass the optimizer gets identifiers and row gradients from `take_pending()`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SparseEmbedding(nn.Module):
    """Table `weights` [N, E], float32, initially zero. Works with any batch size."""

    weights: Tensor

    def __init__(self, num_embeddings: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(num_embeddings, dim))
        self.pending: list[tuple[Tensor, Tensor]] = []

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows [B, E] for ids [B] int, in the table's dtype.

        In training mode with gradients enabled the rows are a new leaf, kept in `pending` (one entry per micro-batch).
        """
        rows = self.weights[ids.long()]
        if self.training and torch.is_grad_enabled():
            rows = rows.detach().requires_grad_()
            self.pending.append((ids, rows))
        return rows

    def take_pending(self) -> tuple[Tensor, Tensor]:
        """Return and clear (ids [n] int32, row gradients [n, E]) of all passes since the last call.

        Passes without a backward pass have zero gradient.
        """
        pending, self.pending = self.pending, []
        if not pending:
            return self.weights.new_empty(0, dtype=torch.int32), self.weights.new_empty(0, self.weights.shape[1])
        ids = torch.cat([ids for ids, _ in pending])
        grads = [torch.zeros_like(rows) if rows.grad is None else rows.grad for _, rows in pending]
        return ids, torch.cat(grads)
