"""Feed-forward layers, [..., D] -> [..., D] with inner width I."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.language_models.config import GPTConfig
from models.layers import CastedLinear
from models.layers.mlp import gated_silu


class _SquaredRelu(torch.autograd.Function):
    """relu(x)², saving one tensor and with two backward passes over memory, where autograd takes five."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = torch.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive  # Tensor.square calls aten::pow, several times slower on a CPU

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        grad: Tensor = (grads[0] * positive).mul_(2.0)
        return grad


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)² (So et al. 2021, Primer)."""
    if torch.compiler.is_compiling():
        return torch.relu(x).square()
    out: Tensor = _SquaredRelu.apply(x)  # type: ignore[no-untyped-call]
    return out


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "squared_relu": squared_relu,
    "relu": F.relu,
    "silu": F.silu,
}


class MLP(nn.Module):
    """proj(activation(fc(x))); SwiGLU: proj(silu(gate) · up) with gate and up stacked in `fc` [2I, D]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        inner, gated = config.inner_size, config.mlp_variant == "swiglu"
        self.fc = CastedLinear(config.n_embd, inner * (2 if gated else 1), bias=config.bias, init_std=0.0)
        self.proj = CastedLinear(inner, config.n_embd, bias=config.bias, init_std=0.0)
        self.activation = gated_silu if gated else ACTIVATIONS[config.activation_variant]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(self.activation(self.fc(x)))
        return out
