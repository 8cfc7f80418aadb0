"""Two ways to apply a low-rank change of a frozen linear layer to each row, and the choice between them.

    low rank:  y = W x + s · Bᵀ (A x)          dense:  y = (W + s · Bᵀ A) x

B rows, T positions, r rank, n and m input and output width. The forms differ in rounding alone. Low rank keeps B·T·r
numbers for the backward pass and dense B·n·m; in a dtype below float32 the dense sum rounds small changes away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.layers import CastedLinear, cast_linear

Form = Literal["auto", "lowrank", "dense"]


@dataclass(frozen=True)
class Cost:
    """Machine constants of the cost model, in operations per the time of one operation of a large product."""

    narrow: float
    """A product with a side of r runs (1 + narrow / r) times slower per operation."""
    batched: float
    """A product with a weight of its own in each row runs this many times slower than one with a shared weight."""
    traffic: float
    """Operations in the time in which one number of a row's own weight is written, read again and its gradient made."""
    call: float
    """Operations in the time of starting one product of a row."""


COSTS = {"cpu": Cost(narrow=6.0, batched=1.15, traffic=24.0, call=0.0)}
"""By type of device, measured by scripts/bench_feedback.py (docs/results/feedback.md); others are taken as "cpu"."""


def low_rank(linear: CastedLinear, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x [B, T, n], a [B, r, n], b [B, r, m] -> [B, T, m] in x's dtype; B may be 1 in a and b for all rows."""
    y: Tensor = linear(x)
    a, b = a.to(x.dtype), b.to(x.dtype)
    if a.shape[0] == 1:
        return y + scale * cast_linear(cast_linear(x, a[0]), b[0].t())
    return torch.baddbmm(y, torch.bmm(x, a.transpose(1, 2)), b, alpha=scale)


def dense(linear: CastedLinear, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The same by one weight a row, summed in the weight's own dtype."""
    weight = linear.weight
    if a.shape[0] == 1:
        return cast_linear(x, torch.addmm(weight, b[0].t(), a[0], alpha=scale))
    shared = weight.expand(a.shape[0], -1, -1)
    return torch.bmm(x, torch.baddbmm(shared, b.transpose(1, 2), a, alpha=scale).to(x.dtype).transpose(1, 2))


def costs(
    rows: int, length: int, rank: int, sides: tuple[int, int], *, device: str = "cpu", training: bool = True
) -> tuple[float, float]:
    """(low rank, dense): what one changed linear layer costs beyond what both forms do, in operations.

    Multiply-adds count 2. Forward, and with `training` backward as well: a frozen W has no gradient, but a row's own
    weight has one, from which those of the factors follow.
    """
    n, m = sides
    cost = COSTS.get(device, COSTS["cpu"])
    thin = 1.0 + cost.narrow / rank
    passes = 3 if training else 1  # forward, and the gradients of both sides of each product
    shared = 2.0 * rows * length * n * m
    low = shared * (2 if training else 1) + passes * (
        2.0 * rows * length * rank * (n + m) * thin + 2 * rows * cost.call
    )
    merged = passes * (shared * cost.batched + 2.0 * rows * rank * n * m * thin + 2 * rows * cost.call)
    return low, merged + cost.traffic * rows * n * m * (1.0 if training else 0.5)


def choose(
    form: Form, rows: int, length: int, rank: int, sides: tuple[int, int], dtype: torch.dtype, device: str
) -> Literal["lowrank", "dense"]:
    """The form that `auto` stands for: the cheaper one; low rank wherever the dense sum would be rounded."""
    if form != "auto":
        return form
    if torch.finfo(dtype).bits < 32:
        return "lowrank"
    low, merged = costs(rows, length, rank, sides, device=device, training=torch.is_grad_enabled())
    return "lowrank" if low <= merged else "dense"


FORMS = {"lowrank": low_rank, "dense": dense}
