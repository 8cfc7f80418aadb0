"""Eager SwiGLU for the CPU: a single autograd function, along the last axis or along the positions.

Gate and up are two matmuls rather than halves of one: elementwise passes then run over contiguous tensors, and in place
when there is no gradient. Along the positions (TRM's mlp_t) a batched matmul reads [B, S, D] directly, where the last
axis would need two transposed copies. Timings: docs/results/bench.md.

Shapes: N rows, n in, I inner, B batch, S positions, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.product import add_linear, linear, uses_onednn


class LastAxis:
    """Matmuls over the last axis of x [N, n]."""

    @staticmethod
    def product(x: Tensor, weight: Tensor) -> Tensor:
        """x @ weightᵀ for weight [m, n] -> [N, m]."""
        return linear(x, weight)

    @staticmethod
    def add_product(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """total += product(x, weight), in place."""
        return add_linear(total, x, weight)

    @staticmethod
    def weight_gradient(grad: Tensor, x: Tensor, out: Tensor) -> None:
        """Write the gradient of `weight` to out [m, n], from the gradient [N, m] of its product with x."""
        linear(grad.t(), x.t(), out)


class Positions:
    """Matmuls over the second axis of x [B, S, D]."""

    @staticmethod
    def product(x: Tensor, weight: Tensor) -> Tensor:
        """weight @ x for weight [m, S] -> [B, m, D]."""
        return torch.bmm(weight.expand(len(x), -1, -1), x)

    @staticmethod
    def add_product(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return total.baddbmm_(weight.expand(len(x), -1, -1), x)

    @staticmethod
    def weight_gradient(grad: Tensor, x: Tensor, out: Tensor) -> None:
        torch.addbmm(out, grad, x.transpose(1, 2), beta=0, out=out)


Axis = type[LastAxis] | type[Positions]


class _SwiGLU(torch.autograd.Function):
    """SwiGLU with `copies`, both weights in x's dtype; gradients have the dtype of the weights."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, copies: tuple[Tensor, Tensor], axis: Axis
    ) -> Tensor:
        low, low_down = copies
        w_gate, w_up = low.chunk(2)
        gate = axis.product(x, w_gate)
        silu, up = F.silu(gate), axis.product(x, w_up)
        hidden = silu * up
        ctx.save_for_backward(x, low, low_down, gate, silu, up, hidden)
        ctx.axis, ctx.dtype = axis, gate_up.dtype
        return axis.product(hidden, low_down)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, low, low_down, gate, silu, up, hidden = ctx.saved_tensors
        axis: Axis = ctx.axis
        grad = grads[0].contiguous()
        needs_x, needs_gate_up, needs_down = ctx.needs_input_grad[:3]
        grad_x = grad_gate_up = grad_down = None
        if needs_down:
            grad_down = torch.empty_like(low_down)
            axis.weight_gradient(grad, hidden, grad_down)
            grad_down = grad_down.to(ctx.dtype)
        if not (needs_x or needs_gate_up):
            return None, None, grad_down, None, None
        grad_hidden = axis.product(grad, low_down.t())
        grad_gate = torch.ops.aten.silu_backward(grad_hidden * up, gate)
        grad_up = grad_hidden.mul_(silu)
        if needs_gate_up:
            grad_gate_up = torch.empty_like(low)
            for part, rows in zip((grad_gate, grad_up), grad_gate_up.chunk(2), strict=True):
                axis.weight_gradient(part, x, rows)
            grad_gate_up = grad_gate_up.to(ctx.dtype)
        if needs_x:
            w_gate, w_up = low.chunk(2)
            grad_x = axis.add_product(axis.product(grad_gate, w_gate.t()), grad_up, w_up.t())
        return grad_x, grad_gate_up, grad_down, None, None


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, copies: tuple[Tensor, Tensor], axis: Axis) -> Tensor:
    """down(silu(gate) * up) for x [N, n] (LastAxis) or [B, S, D] (Positions); gate_up [2I, n], down [n, I]. Returns a
    new tensor."""
    if torch.is_grad_enabled() and (x.requires_grad or gate_up.requires_grad or down.requires_grad):
        out: Tensor = _SwiGLU.apply(x, gate_up, down, copies, axis)  # type: ignore[no-untyped-call]
        return out
    w_gate, w_up = copies[0].chunk(2)
    hidden = F.silu(axis.product(x, w_gate), inplace=True).mul_(axis.product(x, w_up))
    return axis.product(hidden, copies[1])


def fits_positions(x: Tensor) -> bool:
    """Whether `Positions` is faster for x [B, S, D] than transposed copies with `LastAxis`: slower at 16 or 17
    positions, equal at 37, a tenth faster at 97."""
    return x.shape[1] >= 64 and x.dtype == torch.float32 and not uses_onednn(x)
