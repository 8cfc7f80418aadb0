"""Rotary position embedding (Su et al. 2021), half-split form: 1-D over the sequence including the prefix, or 2-D over
the rows and columns of a square grid.

Attention scores depend only on relative positions: in the sequence (1-D), or of row and column (2-D).
Shapes: S positions (P of them prefix), d channels of a head, A axes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def line_positions(length: int) -> Tensor:
    """Positions of a sequence, including the prefix: [S, 1]."""
    return torch.arange(length, device="cpu").unsqueeze(1)


def grid_positions(side: int, prefix: int) -> Tensor:
    """(row, column) of the cells of a side x side grid after P prefix positions: [P + side², 2].

    Prefix position k is at (k, k), cell (r, c) at (P + r, P + c): no two positions coincide, and the offset P does not
    matter among the cells.
    """
    diagonal = torch.arange(prefix, device="cpu")
    cells = torch.arange(side * side, device="cpu")
    rows, columns = cells // side, cells % side
    return torch.cat((torch.stack((diagonal, diagonal), 1), prefix + torch.stack((rows, columns), 1)))


class RotaryTables(nn.Module):
    """Tables cos and signed sin [S, 1, d] for integer `positions` [S, A]; non-persistent buffers.

    Each axis rotates its own n = d / A channels: axis a the pairs (i, i + d/2) for i = a·n/2 .. (a+1)·n/2 - 1, by
    position · theta^(-2j/n), j = 0 .. n/2 - 1. d must be a multiple of 2·A.

    The tables are rebuilt after every `.to`, `.double` or `.to_empty`, so a model built on the meta device gets real
    values and a change of dtype does not round them. The sine table includes the minus sign of the half rotation.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, positions: Tensor, *, theta: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.head_dim, self.positions, self.theta, self.dtype = head_dim, positions, theta, dtype
        device = torch.get_default_device()
        cos, sin = self._tables(device)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        channels = self.head_dim // self.positions.shape[1]
        steps = torch.arange(0, channels, 2, dtype=self.dtype, device="cpu") / channels
        angles = self.positions.to(self.dtype).unsqueeze(-1) * (1.0 / self.theta**steps)  # [S, A, d/2A]
        angles = angles.flatten(1)  # [S, d/2]
        cos = torch.cat((angles.cos(), angles.cos()), dim=-1).unsqueeze(1)
        sin = torch.cat((-angles.sin(), angles.sin()), dim=-1).unsqueeze(1)
        return cos.to(device), sin.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.cos, self.sin = self._tables(self.cos.device)
        return self

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., S, h, d] by position, in the dtype of the tables (at least float32); the result has x's dtype.

    Rolling by half and multiplying with the signed sine equals concat(-x₂, x₁)·sin without the negation.
    Check (d=4, position 1): [1, 2, 3, 4] -> [-1.98411059, 1.95990062, 2.46237803, 4.01979971].
    """
    wide = x.to(cos.dtype)
    return torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)
