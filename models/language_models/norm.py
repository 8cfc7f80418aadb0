"""Norms over the last axis, computed in at least float32; shape and dtype are those of the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.language_models.config import GPTConfig
from models.layers import rms_norm

_DYT_ALPHA = 0.5  # initial value in the paper


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps), with optional gain and bias."""

    def __init__(self, size: int, *, eps: float, gain: bool, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size)) if gain else None
        self.bias = nn.Parameter(torch.zeros(size)) if gain and bias else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.layer_norm(wide, x.shape[-1:], self.weight, self.bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps), with optional gain (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, *, eps: float, gain: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        y = rms_norm(x, self.eps)
        return y if self.weight is None else y * self.weight.to(x.dtype)


class DynamicTanh(nn.Module):
    """Dynamic tanh: gain · tanh(α x) + bias with a learned scalar α (Zhu et al. 2025, arXiv 2503.10622)."""

    def __init__(self, size: int, *, gain: bool, bias: bool) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), _DYT_ALPHA))
        self.weight = nn.Parameter(torch.ones(size)) if gain else None
        self.bias = nn.Parameter(torch.zeros(size)) if gain and bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.alpha * x)
        if self.weight is not None:
            y = y * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)


NORMS = (LayerNorm, RMSNorm, DynamicTanh)


def make_norm(config: GPTConfig) -> nn.Module:
    """The norm given by `norm_variant`, of the model's width."""
    size, gain = config.n_embd, config.norm_gain
    match config.norm_variant:
        case "layernorm":
            return LayerNorm(size, eps=config.norm_eps, gain=gain, bias=config.bias)
        case "rmsnorm":
            return RMSNorm(size, eps=config.norm_eps, gain=gain)
        case "dyt":
            return DynamicTanh(size, gain=gain, bias=config.bias)
    return nn.Identity()
