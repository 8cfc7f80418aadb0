"""Rotary position embedding (Su et al. 2021), half-split form, over one flattened axis that counts the prefix
too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class RotaryTables(nn.Module):
    """Tables cos and signed sin [S, 1, d]; non-persistent, so they are in no checkpoint.

    They are rebuilt after every move of the module (`.to`, `.double`, `.to_empty`): a model made on the meta
    device gets real values, and a change of dtype cannot round them. The sine table carries the minus sign of
    the half rotation.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, length: int, *, theta: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.head_dim, self.length, self.theta, self.dtype = head_dim, length, theta, dtype
        device = torch.get_default_device()
        cos, sin = self._tables(device)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        steps = torch.arange(0, self.head_dim, 2, dtype=self.dtype, device="cpu") / self.head_dim
        positions = torch.arange(self.length, dtype=self.dtype, device="cpu")
        angles = torch.outer(positions, 1.0 / self.theta**steps)  # [S, d/2]
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
    """Rotate x [..., S, h, d] by position; computed in the tables' dtype (at least float32), returned in x's.

    Swapping the halves and using the signed sine is concat(-x₂, x₁)·sin without the extra negation.
    Check (d=4, position 1): [1, 2, 3, 4] -> [-1.98411059, 1.95990062, 2.46237803, 4.01979971].
    """
    wide = x.to(cos.dtype)
    return torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)
