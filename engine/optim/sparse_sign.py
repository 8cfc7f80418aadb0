"""SignSGD for a large table of which a step touches a few rows: w <- w(1 - lr·wd) - lr·sign(Σ gradients of
the row).

Gradients of equal identifiers are summed, over slots, micro-batches and ranks; rows outside the batch do not
even decay. Every shape depends only on the number of slots, so no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.task import SparseTable


def sign_update(
    weights: Tensor, ids: Tensor, grads: Tensor, *, lr: float, weight_decay: float
) -> tuple[Tensor, Tensor]:
    """(sorted ids [n], their new rows [n, E]); equal ids come with equal rows, so they may be written in any
    order.

    A stable sort puts equal ids together, a running count of the changes numbers the groups: no `unique`, no
    host sync.
    """
    order_ids, order = torch.sort(ids.long(), stable=True)
    changes = torch.ones_like(order_ids)
    changes[1:] = (order_ids[1:] != order_ids[:-1]).long()
    group = changes.cumsum(0) - 1  # [n]
    wide = grads[order].to(weights.dtype)
    total = torch.zeros_like(wide).index_add_(0, group, wide)[group]
    return order_ids, weights[order_ids] * (1.0 - lr * weight_decay) - lr * total.sign()


class SparseSignSGD:
    """The interface of the dense optimizers; there is no state besides the table itself."""

    def __init__(self, table: SparseTable, *, lr: float = 1e-2, weight_decay: float = 0.1) -> None:
        for key, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0.0:
                raise ValueError(f"{key}={value}: expected 0 or more")
        self.table, self.lr, self.weight_decay = table, lr, weight_decay

    @torch.no_grad()
    def step(self, lr_scale: float = 1.0, ok: Tensor | None = None) -> None:
        """One update of the rows touched since the last step. `ok` 0 leaves them as they are and drops the
        gradients.

        A collective: every rank calls it, with the same number of rows.
        """
        from engine.distributed import all_gather_rows

        ids, grads = self.table.take_pending()
        ids, grads = all_gather_rows(ids), all_gather_rows(grads)
        if ids.shape[0] == 0:
            return
        weights = self.table.weights
        ids, rows = sign_update(weights, ids, grads, lr=self.lr * lr_scale, weight_decay=self.weight_decay)
        if ok is not None:
            rows = torch.where(ok.to(torch.bool), rows, weights[ids])
        weights[ids] = rows

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore; raises ValueError for a state of another optimizer."""
        if state:
            raise ValueError(f"optimizer state does not fit: sparse_sign_sgd has none, got {sorted(state)}")


def build_sparse(table: Any, names: Sequence[str], **options: Any) -> SparseSignSGD:
    """Registry door; `names` are of no use to a table."""
    del names
    return SparseSignSGD(table, **options)
