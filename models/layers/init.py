"""Truncated normal initialisation whose samples have the *requested* standard deviation, as in JAX and flax."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CUT = 2.0  # truncation in units of the untruncated deviation
MASS = math.erf(_CUT / math.sqrt(2.0))  # probability of [-2, 2]
_DENSITY = math.exp(-0.5 * _CUT**2) / math.sqrt(2.0 * math.pi)
# Var of N(0,1) cut to [-c, c] is 1 - 2 c phi(c) / mass, so this factor (1.1368454) restores unit deviation.
_CORRECTION = 1.0 / math.sqrt(1.0 - 2.0 * _CUT * _DENSITY / MASS)


def trunc_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill `tensor` in place with N(0, std²) cut at ±2 untruncated deviations (±2.2737·std); `std=0` fills
    zeros."""
    with torch.no_grad():
        if std == 0.0:
            return tensor.zero_()
        return truncate_(tensor.uniform_(-MASS, MASS), std)


def truncate_(uniform: Tensor, std: float) -> Tensor:
    """Map numbers uniform in (-MASS, MASS), in place, to N(0, std²) truncated as in `trunc_normal_`."""
    scale = std * _CORRECTION
    return uniform.erfinv_().mul_(math.sqrt(2.0) * scale).clamp_(-_CUT * scale, _CUT * scale)
