"""Linear and embedding layers that store float32 and compute in the dtype of their input.

A recursive model applies the same weight up to 21 times in one step. `cached_casts` makes the low-precision
copy once per step; the weight gradients of those calls are still summed in float32, because each call hands
autograd a float32 gradient for the float32 parameter (a plain shared bfloat16 copy would sum them in
bfloat16: 0.83 % instead of 0.54 % error).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.composed import is_transformed
from models.layers.init import trunc_normal_
from models.layers.product import by_onednn, linear

ALIGNED = 8
"""Matrix products of 16-bit numbers on a GPU read this many at once; rows of other lengths take slower kernels."""
PADDED_ON = frozenset({"cuda"})


class _CastLinear(torch.autograd.Function):
    """y = x @ copyᵀ with `copy` = weight in x's dtype, zeros behind its rows or columns or not; the weight gradient
    comes back in the weight's own dtype and shape."""

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
            # The same sum either way; the BLAS is up to 1.5 times faster with the short side first.
            wide = copy.shape[0] > copy.shape[1]
            grad_weight = linear(rows.t(), outs.t()).t() if wide else linear(outs.t(), rows.t())
            rows_out, rows_in = ctx.weight_shape
            grad_weight = grad_weight[:rows_out, :rows_in].to(ctx.weight_dtype)
        return grad_x, grad_weight, None


def cast_linear(x: Tensor, weight: Tensor, copy: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in] transposed, in x's dtype; `copy` is the weight in that dtype, if available."""
    if weight.dtype == x.dtype and not by_onednn(x):
        return F.linear(x, weight)
    if is_transformed():
        return F.linear(x, weight.to(x.dtype))
    copy = weight.detach().to(x.dtype) if copy is None else copy
    if not torch.is_grad_enabled():
        return linear(x, copy)
    out: Tensor = _CastLinear.apply(x, weight, copy)  # type: ignore[no-untyped-call]
    return out


def word_logits(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., C] times the rows of a table [V, C] -> logits [..., V], as `cast_linear`; on a GPU over V rounded up."""
    if weight.dtype == x.dtype or is_transformed():
        return cast_linear(x, weight)
    words = weight.shape[0]
    return cast_linear(x, weight, _copy_in(x.dtype, weight, (-words % ALIGNED, 0)))[..., :words]


def _copy_in(dtype: torch.dtype, weight: Tensor, pad: tuple[int, int]) -> Tensor:
    """A copy of `weight` without its gradient in another `dtype`; on a GPU with `pad` zeros behind rows and columns."""
    copy = weight.detach().to(dtype)
    out, within = pad if copy.device.type in PADDED_ON else (0, 0)
    return F.pad(copy, (0, within, 0, out)) if out or within else copy


class CastedLinear(nn.Module):
    """[..., in] -> [..., out] in the input's dtype; weight [out, in] float32, std `init_std` (None: 1/sqrt(in));
    bias zeros when present.

    `pad` = (out, in) zeros that a copy of the weight in another dtype has behind its rows and columns on a GPU (without
    a bias): where the input has as many more, an odd size costs nothing there.
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
        self._copy: Tensor | None = None  # set for the length of a `cached_casts` block only

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The weight without its gradient in `dtype`: the copy of `cached_casts`, where there is one."""
        copy = self._copy
        return copy if copy is not None and copy.dtype == dtype else self.cast(dtype)

    def cast(self, dtype: torch.dtype) -> Tensor:
        """A copy of the weight without its gradient in another `dtype`, padded where it is to be."""
        return _copy_in(dtype, self.weight, self.pad)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == x.dtype and not by_onednn(x):
            return F.linear(x, self.weight, self.bias)
        y = cast_linear(x, self.weight, None if is_transformed() else self.weight_in(x.dtype))
        return y if self.bias is None else y + self.bias.to(x.dtype)


class WordHead(CastedLinear):
    """[..., C] -> logits [..., V] in the input's dtype; on a GPU over V rounded up to a multiple of 8."""

    def __init__(self, size: int, words: int, *, init_std: float | None = None) -> None:
        super().__init__(size, words, init_std=init_std, pad=(-words % ALIGNED, 0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., : self.weight.shape[0]]


class CastedEmbedding(nn.Module):
    """Table `embedding_weight` [n, dim] float32; rows are looked up first and cast after (float32 gradient,
    no table copy)."""

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
    """Learned places of a side x side grid, row by row: that of its row plus that of its column."""

    def __init__(self, side: int, dim: int, *, init_std: float, cast_to: torch.dtype) -> None:
        super().__init__()
        std = init_std / math.sqrt(2)
        self.rows = CastedEmbedding(side, dim, init_std=std, cast_to=cast_to)
        self.columns = CastedEmbedding(side, dim, init_std=std, cast_to=cast_to)

    def forward(self) -> Tensor:
        """[side², dim]"""
        places: Tensor = self.rows.table().unsqueeze(1) + self.columns.table()
        return places.flatten(0, 1)


@contextmanager
def cached_casts(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block every `CastedLinear` below `module` reuses one copy of its weight in `dtype`.

    The copies are taken at entry, so the weights must not change inside. Blocks may be nested; the outer copy
    is kept.
    """
    fresh = [m for m in module.modules() if isinstance(m, CastedLinear) and m.weight.dtype != dtype and m._copy is None]
    for layer in fresh:
        layer._copy = layer.cast(dtype)
    try:
        yield
    finally:
        for layer in fresh:
            layer._copy = None
