"""RMS norm without gain: y = x / sqrt(mean(x²) + eps) over the last axis, computed in at least float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.native_ops import native_ops_only


class _RMSNorm(torch.autograd.Function):
    """Eager CPU kernel: three passes forward and two backward, a quarter of the time of the composite operations.

    With r = (mean(x²) + eps)^-1/2 and y = x r the gradient is r (g - y mean(g y)), exact for any eps.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = _scale(wide, eps, -1)
        y: Tensor = wide * scale
        ctx.save_for_backward(y, scale)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        return _gradient(grads[0], y, scale, -1), None


class _AddRMSNorm(torch.autograd.Function):
    """RMS norm of x + y along any axis, in place in the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, eps: float, axis: int) -> Tensor:
        total = (x + y).to(torch.promote_types(x.dtype, torch.float32))
        scale = _scale(total, eps, axis)
        total.mul_(scale)
        ctx.save_for_backward(total, scale)
        ctx.axis = axis
        return total.to(x.dtype) if total.dtype != x.dtype else total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y, scale = ctx.saved_tensors
        grad = _gradient(grads[0], y, scale, ctx.axis)
        return grad, grad, None, None


def _scale(wide: Tensor, eps: float, axis: int) -> Tensor:
    """(mean(x²) + eps)^-1/2 over `axis`, keepdim."""
    scale: Tensor = torch.linalg.vector_norm(wide, dim=axis, keepdim=True)
    return scale.square_().div_(wide.shape[axis]).add_(eps).rsqrt_()


def _gradient(grad: Tensor, y: Tensor, scale: Tensor, axis: int) -> Tensor:
    wide = grad.to(y.dtype)
    along = (wide * y).mean(axis, keepdim=True)
    return torch.addcmul(wide, y, along, value=-1.0).mul_(scale).to(grad.dtype)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Normalise x [..., n] over its last axis; keeps shape and dtype.

    Check: [3, 4] -> [0.84852779, 1.13137042] for eps 1e-5.
    """
    if x.device.type == "cpu" and not native_ops_only():
        normed: Tensor = _RMSNorm.apply(x, eps)  # type: ignore[no-untyped-call]
        return normed
    return F.rms_norm(x, (x.shape[-1],), eps=eps)


def add_rms_norm(x: Tensor, y: Tensor, eps: float, axis: int = -1) -> Tensor:
    """rms_norm(x + y) over `axis`. Without gradient y may be overwritten, so the caller must not reuse it."""
    if x.device.type != "cpu" or native_ops_only():
        if axis == -1:
            return rms_norm(x + y, eps)
        return rms_norm((x + y).transpose(axis, -1), eps).transpose(axis, -1)
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        normed: Tensor = _AddRMSNorm.apply(x, y, eps, axis)  # type: ignore[no-untyped-call]
        return normed
    wide = y.add_(x).to(torch.promote_types(x.dtype, torch.float32))
    return wide.mul_(_scale(wide, eps, axis)).to(x.dtype)
