"""Transformer block whose linear layers a delta can change.

Targets of a delta, by name: q, k, v, o (attention) and fc, proj (feed-forward).
Shapes: B rows, T positions, S keys, C width, h heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.language_models.norm import LayerNorm
from models.layers import CastedLinear, apply_rotary

EPS = 1e-5
Rope = tuple[Tensor, Tensor]


class Change(Protocol):
    """What a delta does to one linear layer."""

    def __call__(self, linear: CastedLinear, x: Tensor) -> Tensor:
        """x [B, T, in] -> [B, T, out] of the changed layer."""


Changes = Mapping[str, Change]
"""The changes of one block by target; a target that is absent stays as it is."""


def changed(linear: CastedLinear, x: Tensor, change: Change | None) -> Tensor:
    """The linear layer, or what `change` makes of it."""
    y: Tensor = linear(x) if change is None else change(linear, x)
    return y


def norm(size: int) -> LayerNorm:
    """A layer norm without gain and bias."""
    return LayerNorm(size, eps=EPS, gain=False, bias=False)


def key_mask(real: Tensor | None) -> Tensor | None:
    """real [B, S] bool -> [B, 1, 1, S]: which keys every query of a row sees.

    A row without any text sees its first position, since a softmax over nothing is not a number.
    """
    if real is None:
        return None
    first = torch.zeros_like(real)
    first[:, :1] = True
    return (real | (first & ~real.any(-1, keepdim=True)))[:, None, None, :]


class Attention(nn.Module):
    """Attention of queries [B, T, C] to keys and values made of [B, S, C], without biases.

    `kind` as in models/layers/attention.py; the flash_attn package knows no padding and is refused.
    """

    def __init__(self, size: int, heads: int, *, std: float, out_std: float, dropout: float, kind: str) -> None:
        super().__init__()
        if kind == "flash":
            raise ValueError("attention=flash cannot leave padding out: use attention=auto")
        self.heads, self.head_dim, self.dropout, self.kind = heads, size // heads, dropout, kind
        self.q = CastedLinear(size, size, init_std=std)
        self.k = CastedLinear(size, size, init_std=std)
        self.v = CastedLinear(size, size, init_std=std)
        self.o = CastedLinear(size, size, init_std=out_std)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, causal: bool, changes: Changes) -> Tensor:
        """Self-attention. mask [B, 1, 1, T] bool; causal: a position sees none after it."""
        query = self._split(changed(self.q, x, changes.get("q")))
        key = self._split(changed(self.k, x, changes.get("k")))
        value = self._split(changed(self.v, x, changes.get("v")))
        query, key = apply_rotary(query, *rope), apply_rotary(key, *rope)
        # Under a causal mask the padding, which comes last, is hidden from all text already.
        mixed = self._mix(query, key, value, None if causal else mask, causal)
        return changed(self.o, mixed, changes.get("o"))

    def read(self, queries: Tensor, x: Tensor, rope: Rope, mask: Tensor | None) -> Tensor:
        """What `queries` [1, Q, C], the same for all rows, read of x [B, T, C] and of one another: [B, Q, C].

        Only x has positions: a query stands at none, so the result does not depend on how much padding follows x.
        mask [B, 1, 1, T] bool.
        """
        rows = x.shape[0]
        key = torch.cat((apply_rotary(self._split(self.k(x)), *rope), self._shared(self.k, queries, rows)), dim=1)
        value = torch.cat((self._split(self.v(x)), self._shared(self.v, queries, rows)), dim=1)
        if mask is not None:
            mask = F.pad(mask, (0, queries.shape[1]), value=True)
        out: Tensor = self.o(self._mix(self._shared(self.q, queries, rows), key, value, mask, False))
        return out

    def _shared(self, linear: CastedLinear, queries: Tensor, rows: int) -> Tensor:
        projected: Tensor = linear(queries)  # once for all rows
        return self._split(projected).expand(rows, -1, -1, -1)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.head_dim)  # [B, S, h, d]

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """[B, T, h, d], [B, S, h, d] twice -> [B, T, C]."""
        q, k, v = (part.transpose(1, 2) for part in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        if self.kind != "math":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
            return mixed.transpose(1, 2).flatten(-2)
        scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(self.head_dim)
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = F.dropout(scores.softmax(-1).to(v.dtype), dropout)
        return (weights @ v).transpose(1, 2).flatten(-2)


class FeedForward(nn.Module):
    """proj(gelu(fc(x))), inner width 4·C."""

    def __init__(self, size: int, *, std: float, out_std: float) -> None:
        super().__init__()
        self.fc = CastedLinear(size, 4 * size, init_std=std)
        self.proj = CastedLinear(4 * size, size, init_std=out_std)

    def forward(self, x: Tensor, changes: Changes) -> Tensor:
        """[..., C] -> [..., C]."""
        return changed(self.proj, F.gelu(changed(self.fc, x, changes.get("fc"))), changes.get("proj"))


class Block(nn.Module):
    """x <- x + attention(norm(x)); x <- x + mlp(norm(x)). [B, T, C] -> [B, T, C]. One compile unit."""

    def __init__(self, size: int, heads: int, *, std: float, out_std: float, dropout: float, kind: str) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm_attn, self.norm_mlp = norm(size), norm(size)
        self.attn = Attention(size, heads, std=std, out_std=out_std, dropout=dropout, kind=kind)
        self.mlp = FeedForward(size, std=std, out_std=out_std)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor | None = None, causal: bool = False, changes: Changes | None = None
    ) -> Tensor:
        """mask [B, 1, 1, T] bool, True where a key is visible."""
        changes = changes or {}
        x = x + self._drop(self.attn(self.norm_attn(x), rope, mask, causal, changes))
        return x + self._drop(self.mlp(self.norm_mlp(x), changes))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x
