"""Norms of gradients, weights and updates by group of parameters, taken on the device now and then.

    grad_norm_G     of the global gradient, before clipping (their squares add up to that of train/grad_norm)
    weight_norm_G   of the weights before the step
    update_ratio_G  norm of the step's change, over weight_norm_G

All ranks hold the same gradient and weights, so all have the same numbers and none has to be reduced. A sparse table
has a weight norm only: its gradient rows belong to its optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from engine.task import ParamGroup


class GroupStats:
    """`before` and `after` around the optimizers of a step that is due; `flush` at the next log line."""

    def __init__(self, groups: Iterable[ParamGroup], interval: int | None) -> None:
        self.interval = interval
        self.params = {g.name: list(g.dense.values()) for g in groups if g.table is None}
        self.tables = {g.name: g.table for g in groups if g.table is not None}
        self.values: dict[str, Tensor] = {}
        self._old: dict[str, list[Tensor]] = {}

    def due(self, step: int) -> bool:
        """Whether the norms of this step are wanted."""
        return self.interval is not None and step % self.interval == 0

    @torch.no_grad()
    def before(self, norm: Tensor, clip: float | None) -> None:
        """Once the gradient is complete; `norm` is the global one before it was clipped to `clip`."""
        clipped = 1.0 if clip is None else (clip / norm.clamp(min=1e-12)).clamp(max=1.0)
        for name, params in self.params.items():
            self.values[f"grad_norm_{name}"] = _norm([p.grad for p in params if p.grad is not None], norm) / clipped
            self.values[f"weight_norm_{name}"] = _norm([p.detach() for p in params], norm)
            self._old[name] = [p.detach().clone() for p in params]
        for name, table in self.tables.items():
            self.values[f"weight_norm_{name}"] = _norm([table.weights], norm)

    @torch.no_grad()
    def after(self) -> None:
        """Once the optimizers have stepped."""
        for name, old in self._old.items():
            moved = torch._foreach_sub([p.detach() for p in self.params[name]], old)
            weight = self.values[f"weight_norm_{name}"]
            self.values[f"update_ratio_{name}"] = _norm(list(moved), weight) / weight.clamp(min=1e-12)
        self._old.clear()

    def flush(self) -> dict[str, float]:
        """The newest norms since the last call, none if no step was due: one transfer."""
        values, self.values = self.values, {}
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)) if values else {}

    def state_dict(self) -> dict[str, Tensor]:
        """What the next log line is owed."""
        return dict(self.values)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse; names that this version does not have are dropped with the groups they belonged to."""
        if any(not isinstance(value, Tensor) or value.numel() != 1 for value in state.values()):
            raise ValueError("the norms that the next log line is owed are no numbers by name")
        self.values = dict(state)


def _norm(tensors: list[Tensor], like: Tensor) -> Tensor:
    """The common 2-norm, in the dtype and on the device of the scalar `like`; 0 of nothing."""
    if not tensors:
        return torch.zeros_like(like)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))).to(like)
