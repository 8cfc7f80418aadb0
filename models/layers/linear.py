"""Linear and embedding layers with float32 weights that compute in the dtype of their input.

A recursive model applies the same weight up to 21 times in one step. `cached_casts` makes the low-precision copy once
per step. Weight gradients are still summed in float32, since every call returns a float32 gradient to autograd; a plain
shared bfloat16 copy would sum them in bfloat16 (0.83 % error instead of 0.54 %).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.init import trunc_normal_
from models.layers.native_ops import no_custom_autograd
from models.layers.product import linear, uses_onednn

ALIGNED = 8
"""16-bit matmuls on a GPU need dimensions that are multiples of this; others take slower kernels."""
PADDED_ON = frozenset({"cuda"})


class _CastLinear(torch.autograd.Function):
    """y = x @ copyᵀ, where `copy` is the weight in x's dtype, possibly zero-padded; the weight gradient has the dtype
    and shape of the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, copy: Tensor) -> Tensor:
        ctx.save_for_backward(x, copy)
        ctx.weight_dtype, ctx.weight_shape = weight.dtype, weight.shape
        return linear(x, copy)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, copy = ctx.saved_tensors
        grad_x = linear(grad, copy.t()) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            rows, outs = x.flatten(0, -2), grad.flatten(0, -2)
            # Same result either way; BLAS is up to 1.5 times faster with the short side first.
            wide = copy.shape[0] > copy.shape[1]
            grad_weight = linear(rows.t(), outs.t()).t() if wide else linear(outs.t(), rows.t())
            rows_out, rows_in = ctx.weight_shape
            grad_weight = grad_weight[:rows_out, :rows_in].to(ctx.weight_dtype)
        return grad_x, grad_weight, None


def cast_linear(x: Tensor, weight: Tensor, copy: Tensor | None = None) -> Tensor:
    """x [..., in] @ weight [out, in] transposed, in x's dtype; `copy` is the weight in that dtype, if available."""
    if weight.dtype == x.dtype and not uses_onednn(x):
        return F.linear(x, weight)
    if no_custom_autograd():
        return linear(x, weight.to(x.dtype))
    copy = weight.detach().to(x.dtype) if copy is None else copy
    if not torch.is_grad_enabled():
        return linear(x, copy)
    out: Tensor = _CastLinear.apply(x, weight, copy)  # type: ignore[no-untyped-call]
    return out


def tied_logits(x: Tensor, weight: Tensor) -> Tensor:
    """Logits [..., V] of x [..., C] with a tied embedding table [V, C], as `cast_linear`; on a GPU V is padded to a
    multiple of 8 internally."""
    if weight.dtype == x.dtype or no_custom_autograd():
        return cast_linear(x, weight)
    vocab = weight.shape[0]
    return cast_linear(x, weight, _padded_copy(x.dtype, weight, (-vocab % ALIGNED, 0)))[..., :vocab]


def _padded_copy(dtype: torch.dtype, weight: Tensor, pad: tuple[int, int]) -> Tensor:
    """A detached copy of `weight` in another `dtype`; on a GPU zero-padded by `pad` = (rows, columns)."""
    copy = weight.detach().to(dtype)
    rows, columns = pad if copy.device.type in PADDED_ON else (0, 0)
    return F.pad(copy, (0, columns, 0, rows)) if rows or columns else copy


class CastedLinear(nn.Module):
    """[..., in] -> [..., out] in the input's dtype; weight [out, in] float32 of std `init_std` (None: 1/sqrt(in)), bias
    zero if present.

    `pad` = (out, in): zero padding of the low-precision copy of the weight on a GPU (no bias), for which the input must
    be padded too. It makes odd sizes as fast as aligned ones.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        init_std: float | None = None,
        pad: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.pad = pad
        std = 1.0 / math.sqrt(in_features) if init_std is None else init_std
        self.weight = nn.Parameter(trunc_normal_(torch.empty(out_features, in_features), std))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self._copy: Tensor | None = None  # set only within `cached_casts`

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The detached weight in `dtype`: the copy of `cached_casts` if there is one, else a new copy."""
        copy = self._copy
        return copy if copy is not None and copy.dtype == dtype else self.cast(dtype)

    def cast(self, dtype: torch.dtype) -> Tensor:
        """A detached copy of the weight in another `dtype`, padded by `pad` on a GPU."""
        return _padded_copy(dtype, self.weight, self.pad)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == x.dtype and not uses_onednn(x):
            return F.linear(x, self.weight, self.bias)
        y = cast_linear(x, self.weight, None if no_custom_autograd() else self.weight_in(x.dtype))
        return y if self.bias is None else y + self.bias.to(x.dtype)


class LMHead(CastedLinear):
    """Output head: [..., C] -> logits [..., V] in the input's dtype; on a GPU V is padded to a multiple of 8
    internally."""

    def __init__(self, size: int, vocab: int, *, init_std: float | None = None) -> None:
        super().__init__(size, vocab, init_std=init_std, pad=(-vocab % ALIGNED, 0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., : self.weight.shape[0]]


class CastedEmbedding(nn.Module):
    """Table `embedding_weight` [n, dim] float32. Rows are cast after the lookup: float32 gradients, no copy of the
    table."""

    def __init__(self, num_embeddings: int, dim: int, *, init_std: float, cast_to: torch.dtype) -> None:
        super().__init__()
        self.cast_to = cast_to
        self.embedding_weight = nn.Parameter(trunc_normal_(torch.empty(num_embeddings, dim), init_std))

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] int -> [..., dim] in `cast_to`."""
        return F.embedding(ids, self.embedding_weight).to(self.cast_to)

    def table(self) -> Tensor:
        """The whole table [n, dim] in `cast_to`."""
        return self.embedding_weight.to(self.cast_to)


class GridEmbedding(nn.Module):
    """Learned position embeddings of a side x side grid, in row-major order: row embedding + column embedding."""

    def __init__(self, side: int, dim: int, *, init_std: float, cast_to: torch.dtype) -> None:
        super().__init__()
        std = init_std / math.sqrt(2)
        self.rows = CastedEmbedding(side, dim, init_std=std, cast_to=cast_to)
        self.columns = CastedEmbedding(side, dim, init_std=std, cast_to=cast_to)

    def forward(self) -> Tensor:
        """All positions, [side², dim]."""
        positions: Tensor = self.rows.table().unsqueeze(1) + self.columns.table()
        return positions.flatten(0, 1)


@contextmanager
def cached_casts(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Context in which every `CastedLinear` in `module` reuses one copy of its weight in `dtype`.

    The copies are made on entry, so the weights must not change inside. Contexts may be nested; the outer copy is kept.
    """
    fresh = [m for m in module.modules() if isinstance(m, CastedLinear) and m.weight.dtype != dtype and m._copy is None]
    for layer in fresh:
        layer._copy = layer.cast(dtype)
    try:
        yield
    finally:
        for layer in fresh:
            layer._copy = None
