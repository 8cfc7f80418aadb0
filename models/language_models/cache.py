"""KV cache: keys and values of the tokens read so far, so that the next token costs one position.

Shapes: L blocks, B rows, g key and value heads, S positions (block_size), d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """Keys and values [B, g, S, d] of one block (already rotated and normalised); the first `start` are filled."""

    keys: Tensor
    values: Tensor
    start: int

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, g, T, d] at `start`; returns all start + T positions."""
        end = self.start + key.shape[2]
        self.keys[:, :, self.start : end] = key
        self.values[:, :, self.start : end] = value
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """KV cache of all blocks, preallocated for `rows` rows and `size` positions; the first `length` are filled."""

    def __init__(
        self, *, layers: int, rows: int, heads: int, size: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, rows, heads, size, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.size, self.length = size, 0
        self.tokens: Tensor | None = None
        """Tokens in the cache, [B, ...]; kept by `GPT.step`."""

    def layer(self, index: int) -> LayerCache:
        """View of block `index`."""
        return LayerCache(self.keys[index], self.values[index], self.length)
