"""Random numbers that depend only on the key of a row, not on the batch, the rank or the device's generator.

A counter-based generator (Salmon et al. 2011): number i of a row is a hash of (key, stream, i), here the finalizer of
splitmix64 (Steele et al. 2014), computed on the device with integer operations. B rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.layers.init import MASS, truncate_

NOISE_KEY = "noise_key"
"""Entry of the latents, for models that need keys: the random key [B] int64 of each row at its next ACT step."""
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, odd; as signed 64 bits
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685  # multipliers of splitmix64


def content_keys(tokens: Tensor) -> Tensor:
    """Hash examples [B, T] to keys [B]: the same puzzle has the same key in every batch."""
    positions = torch.arange(tokens.shape[1], device=tokens.device) * _GOLDEN
    return _mix(tokens.long() + positions).sum(dim=1)


def spread_keys(keys: Tensor, count: int) -> Tensor:
    """Derive `count` keys from each of `keys` [B]: [B * count], those of a row adjacent."""
    indices = torch.arange(1, count + 1, device=keys.device) * _GOLDEN
    return _mix(keys[:, None] ^ indices).flatten()


def keyed_normal(keys: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers [B, *shape], float32, for rows with `keys` [B] (Box-Muller)."""
    radius, angle = _uniform(keys, stream, math.prod(shape))
    radius, angle = torch.sqrt(-2.0 * torch.log(radius)), 2.0 * math.pi * angle
    return _shaped((radius * torch.cos(angle), radius * torch.sin(angle)), shape)


def keyed_trunc_normal(keys: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """TruncN(0, 1), as drawn by `trunc_normal_`: [B, *shape], float32, for rows with `keys` [B]."""
    low, high = _uniform(keys, stream, math.prod(shape))
    return truncate_((2.0 * _shaped((low, high), shape) - 1.0).mul_(MASS), 1.0)


def _shaped(halves: tuple[Tensor, Tensor], shape: Sequence[int]) -> Tensor:
    return torch.cat(halves, dim=1)[:, : math.prod(shape)].view(-1, *shape)


def _uniform(keys: Tensor, stream: int, count: int) -> tuple[Tensor, Tensor]:
    """Two tensors [B, ceil(count / 2)], uniform in the open interval (0, 1): the two halves of each hash."""
    counters = torch.arange((count + 1) // 2, device=keys.device) * _GOLDEN
    bits = _mix(_mix(_mix(keys) + stream)[:, None] + counters)
    return _unit(bits >> 40), _unit(bits >> 16)


def _unit(bits: Tensor) -> Tensor:
    """Map the lowest 24 bits to the midpoint of one of 2^24 bins of (0, 1): never 0 or 1 in float32."""
    return ((bits & 0xFFFFFF).to(torch.float32) + 0.5).clamp_(max=2.0**24 - 1) * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """Finalizer of splitmix64: a bijection of 64-bit integers in which every input bit affects every output bit."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _FIRST
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _SECOND
    return x ^ ((x >> 31) & (2**33 - 1))
