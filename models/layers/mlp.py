"""SwiGLU feed-forward layer: down(silu(gate) * up) with one fused gate-and-up projection (Shazeer 2020)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.linear import ALIGNED, PADDED_ON, CastedLinear
from models.layers.native_ops import native_ops_only, no_custom_autograd
from models.layers.norm import rms_norm
from models.layers.swiglu_cpu import Axis, LastAxis, Positions, fits_positions, swiglu

MULTIPLE = 256  # as published; widths that suit GPUs
GATE_EPS = 1e-5


def swiglu_inner_size(size: int, expansion: float, multiple: int = MULTIPLE) -> int:
    """Inner width I: 2/3 of expansion·size, rounded up to a `multiple` (512 at expansion 4 -> 1536)."""
    return -(-max(1, round(expansion * size * 2 / 3)) // multiple) * multiple


class _GatedSiLU(torch.autograd.Function):
    """[..., 2I] (gate first) -> silu(gate) * up [..., I]. The backward pass writes both halves into one buffer;
    silu(gate) is saved on a CPU and recomputed elsewhere."""

    @staticmethod
    def forward(ctx: Any, fused: Tensor) -> Tensor:
        gate, up = fused.chunk(2, dim=-1)
        silu = F.silu(gate)
        if fused.device.type != "cpu":
            ctx.save_for_backward(fused)
            return silu.mul_(up)
        ctx.save_for_backward(fused, silu)
        return silu * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        fused, *saved = ctx.saved_tensors
        gate, up = fused.chunk(2, dim=-1)
        silu = saved[0] if saved else F.silu(gate)
        grad_fused = torch.empty_like(fused)
        grad_gate, grad_up = grad_fused.chunk(2, dim=-1)
        torch.mul(grad, silu, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_fused


def gated_silu(fused: Tensor) -> Tensor:
    """silu(gate) * up of a tensor [..., 2I] whose first half is the gate -> [..., I], contiguous."""
    gate, up = fused.chunk(2, dim=-1)
    if native_ops_only():
        return F.silu(gate) * up
    if torch.is_grad_enabled() and fused.requires_grad:
        gated: Tensor = _GatedSiLU.apply(fused)  # type: ignore[no-untyped-call]
        return gated
    return F.silu(gate).mul_(up)


class SwiGLU(nn.Module):
    """[..., size] -> [..., size]; `gate_up_proj` [2I, size], `down_proj` [size, I], no biases.

    `gate_norm`: down(sigmoid(gate) * rms_norm(gate * up)) instead of down(silu(gate) * up). `aligned`: rows of input
    and output are zero-padded by `padding(x)`.
    """

    def __init__(
        self,
        size: int,
        expansion: float,
        *,
        multiple: int = MULTIPLE,
        gate_norm: bool = False,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        inner = swiglu_inner_size(size, expansion, multiple)
        self.gate_norm, self.inner = gate_norm, inner
        self.pad = -size % ALIGNED if aligned else 0
        self.gate_up_proj = CastedLinear(size, 2 * inner, pad=(0, self.pad))
        self.down_proj = CastedLinear(inner, size, pad=(self.pad, 0))

    def padding(self, x: Tensor) -> int:
        """Zero padding that the rows of x [..., size] need: matmuls on a GPU are slow for unaligned sizes."""
        padded = x.device.type in PADDED_ON and x.dtype != self.down_proj.weight.dtype and not no_custom_autograd()
        return self.pad if padded else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_norm:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
            out: Tensor = self.down_proj(torch.sigmoid(gate) * rms_norm(gate * up, GATE_EPS))
        elif x.device.type == "cpu" and not native_ops_only():
            out = self._on_cpu(x.flatten(0, -2), LastAxis).view(x.shape)
        else:
            out = self.down_proj(gated_silu(self.gate_up_proj(x)))
        return out

    def along_positions(self, x: Tensor) -> Tensor | None:
        """Apply along axis 1: [B, size, D] -> [B, size, D]; None if transposed copies are faster."""
        if self.gate_norm or x.device.type != "cpu" or native_ops_only() or not fits_positions(x):
            return None
        return self._on_cpu(x, Positions)

    def _on_cpu(self, x: Tensor, axis: Axis) -> Tensor:
        fused, down = self.gate_up_proj, self.down_proj
        return swiglu(x, fused.weight, down.weight, (fused.weight_in(x.dtype), down.weight_in(x.dtype)), axis)
