"""Two ways to apply a low-rank change per row to a frozen linear layer, and how to choose between them.

    low rank:  y = W x + s · Bᵀ (A x)          dense:  y = (W + s · Bᵀ A) x

B rows, T positions, r rank, n and m input and output width. The forms differ only in rounding. Low rank saves B·T·r
numbers for the backward pass, dense B·n·m; in a dtype below float32 the dense sum rounds small changes away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.layers import CastedLinear, cast_linear, in_float32, matmul

Form = Literal["auto", "lowrank", "dense"]


@dataclass(frozen=True)
class Cost:
    """Linear model of the time of each form, in nanoseconds on one core, fitted to a grid of benchmarks."""

    call: tuple[float, float]
    """Fixed cost of a call of the low-rank and the dense form."""
    product: tuple[float, float]
    """Per multiply-add of the product with W, shared by all rows, and with one weight per row."""
    thin: float
    """Per multiply-add of x Aᵀ and (x Aᵀ) B."""
    position: float
    """Per element of input or output that the low-rank form reads or writes again."""
    factor: float
    """Per element of A or B in the low-rank form."""
    formed: float
    """Per multiply-add of Bᵀ A."""
    matrix: float
    """Per element of a row's own weight, which is written, read and, in training, has a gradient."""


COSTS = {
    True: Cost(
        call=(595e3, 308e3),
        product=(0.0368, 0.0442),
        thin=0.0460,
        position=1.95,
        factor=1.52,
        formed=0.0514,
        matrix=2.78,
    ),
    False: Cost(
        call=(113e3, 37e3),
        product=(0.0166, 0.0148),
        thin=0.0141,
        position=0.66,
        factor=0.41,
        formed=0.0150,
        matrix=0.61,
    ),
}
"""With and without a backward pass, on a CPU (scripts/bench_feedback.py, docs/results/feedback.md)."""


def low_rank(linear: CastedLinear, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Low-rank form: x [B, T, n], a [B, r, n], b [B, r, m] -> [B, T, m] in x's dtype; a, b may have 1 row for all."""
    y: Tensor = linear(x)
    a, b = a.to(x.dtype), b.to(x.dtype)
    if a.shape[0] == 1:
        return y + scale * cast_linear(cast_linear(x, a[0]), b[0].t())
    inner = matmul(x, a.transpose(1, 2))
    return y + scale * matmul(inner, b) if in_float32(x) else torch.baddbmm(y, inner, b, alpha=scale)


def dense(linear: CastedLinear, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Dense form of the same: one weight per row, summed in the dtype of the weight."""
    weight = linear.weight
    if a.shape[0] == 1:
        return cast_linear(x, torch.addmm(weight, b[0].t(), a[0], alpha=scale))
    shared = weight.expand(a.shape[0], -1, -1)
    return matmul(x, torch.baddbmm(shared, b.transpose(1, 2), a, alpha=scale).to(x.dtype).transpose(1, 2))


def costs(rows: int, length: int, rank: int, sides: tuple[int, int], *, training: bool = True) -> tuple[float, float]:
    """Estimated nanoseconds (low rank, dense) of one changed linear layer on one core; `training` adds the backward
    pass."""
    n, m = sides
    cost = COSTS[training]
    product = float(rows * length * n * m)
    low = cost.call[0] + cost.product[0] * product + cost.thin * rows * length * rank * (n + m)
    low += cost.position * rows * length * (n + m) / 2 + cost.factor * rows * rank * (n + m) / 2
    merged = cost.call[1] + cost.product[1] * product + cost.formed * rows * rank * n * m + cost.matrix * rows * n * m
    return low, merged


def choose_form(
    form: Form, rows: int, length: int, rank: int, sides: tuple[int, int], dtype: torch.dtype, device: str
) -> Literal["lowrank", "dense"]:
    """Resolve `auto` to the faster form on a CPU.

    Otherwise low rank: in a dtype below float32, where the dense sum would round small changes away, and on devices
    without measurements, since it needs less memory.
    """
    if form != "auto":
        return form
    if torch.finfo(dtype).bits < 32 or device != "cpu":
        return "lowrank"
    low, merged = costs(rows, length, rank, sides, training=torch.is_grad_enabled())
    return "lowrank" if low <= merged else "dense"


FORMS = {"lowrank": low_rank, "dense": dense}
