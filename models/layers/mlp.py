"""SwiGLU feed-forward layer: down(silu(gate) * up) with one fused gate-and-up projection (Shazeer 2020)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.linear import CastedLinear
from models.layers.norm import rms_norm
from models.layers.product import linear

MULTIPLE = 256  # of the published code: inner widths that GPUs like
GATE_EPS = 1e-5
CHUNK_NUMBERS = 2**19  # hidden numbers per chunk of `_ChunkedSwiGLU`: 2 MB in float32


def swiglu_inner_size(size: int, expansion: float, multiple: int = MULTIPLE) -> int:
    """Inner width I: two thirds of expansion·size, rounded up to a `multiple` (512 at expansion 4 -> 1536)."""
    return -(-max(1, round(expansion * size * 2 / 3)) // multiple) * multiple


class _GatedSiLU(torch.autograd.Function):
    """[..., 2I] (gate first) -> silu(gate) * up [..., I]; the backward pass writes both halves into one
    buffer.

    silu' = s + silu (1 - s) with s = sigmoid(gate). On a CPU s is kept (the exponential costs more than
    memory traffic), elsewhere it is computed again.
    """

    @staticmethod
    def forward(ctx: Any, fused: Tensor) -> Tensor:
        gate, up = fused.chunk(2, dim=-1)
        if fused.device.type != "cpu":
            ctx.save_for_backward(fused)
            return F.silu(gate).mul_(up)
        sigmoid = torch.sigmoid(gate)
        ctx.save_for_backward(fused, sigmoid)
        return (gate * sigmoid).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        fused, *kept = ctx.saved_tensors
        gate, up = fused.chunk(2, dim=-1)
        sigmoid = kept[0] if kept else torch.sigmoid(gate)
        silu = gate * sigmoid
        grad_fused = torch.empty_like(fused)
        grad_gate, grad_up = grad_fused.chunk(2, dim=-1)
        torch.mul(grad, silu, out=grad_up)
        torch.lerp(sigmoid, sigmoid.new_ones(()), silu, out=grad_gate)  # s + silu (1 - s)
        grad_gate.mul_(up).mul_(grad)
        return grad_fused


def gated_silu(fused: Tensor) -> Tensor:
    """silu(gate) * up of a tensor [..., 2I] whose first half is the gate. Without gradient `fused` is
    overwritten."""
    if torch.compiler.is_compiling():
        gate, up = fused.chunk(2, dim=-1)
        return F.silu(gate) * up
    if torch.is_grad_enabled() and fused.requires_grad:
        gated: Tensor = _GatedSiLU.apply(fused)  # type: ignore[no-untyped-call]
        return gated
    gate, up = fused.chunk(2, dim=-1)
    return F.silu(gate, inplace=True) * up  # a fresh tensor: the next product wants contiguous rows


class _ChunkedSwiGLU(torch.autograd.Function):
    """SwiGLU over many rows on a CPU: keeps x alone and repeats the projection in the backward pass.

    Row chunks small enough for the cache are worth more than the repeated product: the hidden rows (8 MB a
    call on a 4x4 Sudoku batch) are neither written to memory nor read back, and the two passes take about two
    thirds of the time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, up_weight: Tensor, down_weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, up_weight, down_weight)
        return linear(gated_silu(linear(x, up_weight)), down_weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, up_weight, down_weight = ctx.saved_tensors
        rows, outs = x.flatten(0, -2), grads[0].flatten(0, -2)
        size = max(1, CHUNK_NUMBERS // up_weight.shape[0])
        grad_x, one = torch.empty_like(rows), x.new_ones(())
        grad_up, grad_down = torch.zeros_like(up_weight.t()), torch.zeros_like(down_weight)
        for part, out, grad_part in zip(rows.split(size), outs.split(size), grad_x.split(size), strict=True):
            fused = linear(part, up_weight)
            gate, up = fused.chunk(2, dim=-1)
            grad = linear(out, down_weight.t())  # gradient of the activation
            sigmoid = torch.sigmoid(gate)
            silu = gate * sigmoid
            torch.lerp(sigmoid, one, silu, out=gate)  # s + silu (1 - s), the slope of silu
            gate.mul_(up).mul_(grad)  # gradient of the gate, in its place
            grad_down += linear(out.t(), (up * silu).t())
            torch.mul(silu, grad, out=up)  # gradient of up, in its place
            grad_part.copy_(linear(fused, up_weight.t()))
            grad_up += linear(part.t(), fused.t())
        return grad_x.view(x.shape), grad_up.t(), grad_down


class SwiGLU(nn.Module):
    """[..., size] -> [..., size]; `gate_up_proj` [2I, size], `down_proj` [size, I], no biases.

    `gate_norm`: down(sigmoid(gate) * rms_norm(gate * up)) in place of down(silu(gate) * up).
    """

    def __init__(self, size: int, expansion: float, *, multiple: int = MULTIPLE, gate_norm: bool = False) -> None:
        super().__init__()
        inner = swiglu_inner_size(size, expansion, multiple)
        self.gate_norm, self.inner = gate_norm, inner
        self.gate_up_proj = CastedLinear(size, 2 * inner)
        self.down_proj = CastedLinear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_norm:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
            out: Tensor = self.down_proj(torch.sigmoid(gate) * rms_norm(gate * up, GATE_EPS))
        elif self._chunked(x):
            out = _ChunkedSwiGLU.apply(x, self.gate_up_proj.weight, self.down_proj.weight)  # type: ignore[no-untyped-call]
        else:
            out = self.down_proj(gated_silu(self.gate_up_proj(x)))
        return out

    def _chunked(self, x: Tensor) -> bool:
        weight = self.gate_up_proj.weight
        return (
            x.device.type == "cpu"
            and x.dtype == weight.dtype
            and torch.is_grad_enabled()
            and x.numel() // x.shape[-1] * weight.shape[0] > 2 * CHUNK_NUMBERS
            and not torch.compiler.is_compiling()
        )
