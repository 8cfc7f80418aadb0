"""Transformer block whose linear layers can be changed by a delta.

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
from models.layers import CastedLinear, apply_rotary, fused_attention, matmul

EPS = 1e-5
Rope = tuple[Tensor, Tensor]


class Change(Protocol):
    """The change of one linear layer by a delta."""

    def __call__(self, linear: CastedLinear, x: Tensor) -> Tensor:
        """Output [B, T, out] of the changed layer for x [B, T, in]."""


Changes = Mapping[str, Change]
"""The changes of one block by target; missing targets are unchanged."""


def apply_change(linear: CastedLinear, x: Tensor, change: Change | None) -> Tensor:
    """Apply the linear layer, with `change` if there is one."""
    y: Tensor = linear(x) if change is None else change(linear, x)
    return y


def norm(size: int) -> LayerNorm:
    """Layer norm without gain and bias."""
    return LayerNorm(size, eps=EPS, gain=False, bias=False)


def key_mask(real: Tensor | None) -> Tensor | None:
    """Attention mask [B, 1, 1, S] from real [B, S] bool, False for padding.

    Rows without text keep their first position, since a softmax over no keys is NaN.
    """
    if real is None:
        return None
    first = torch.zeros_like(real)
    first[:, :1] = True
    return (real | (first & ~real.any(-1, keepdim=True)))[:, None, None, :]


class Attention(nn.Module):
    """Multi-head attention without biases: queries [B, T, C] attend to [B, S, C].

    `kind` as in models/layers/attention.py, except flash: the flash_attn package has no padding mask.
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
        """Self-attention of x [B, T, C]. mask [B, 1, 1, T] bool, True where a key is visible; causal: no later keys."""
        query = self._split(apply_change(self.q, x, changes.get("q")))
        key = self._split(apply_change(self.k, x, changes.get("k")))
        value = self._split(apply_change(self.v, x, changes.get("v")))
        query, key = apply_rotary(query, *rope), apply_rotary(key, *rope)
        # Padding comes last, so the causal mask already hides it from the text.
        mixed = self._mix(query, key, value, None if causal else mask, causal)
        return apply_change(self.o, mixed, changes.get("o"))

    def read(self, queries: Tensor, x: Tensor, rope: Rope, mask: Tensor | None) -> Tensor:
        """Attend from `queries` [1, Q, C], shared by all rows, to x [B, T, C] and to each other -> [B, Q, C].

        Only x has rotary positions, so the result does not depend on how much padding follows x. mask [B, 1, 1, T]
        bool.
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
        """query [B, T, h, d], key and value [B, S, h, d] -> [B, T, C]."""
        q, k, v = (part.transpose(1, 2) for part in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        if self.kind != "math":
            mixed = fused_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
            return mixed.transpose(1, 2).flatten(-2)
        scores = matmul(q, k.transpose(-1, -2))
        scores = scores.to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(self.head_dim)
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = F.dropout(scores.softmax(-1).to(v.dtype), dropout)
        return matmul(weights, v).transpose(1, 2).flatten(-2)


class FeedForward(nn.Module):
    """proj(gelu(fc(x))), inner width 4·C."""

    def __init__(self, size: int, *, std: float, out_std: float) -> None:
        super().__init__()
        self.fc = CastedLinear(size, 4 * size, init_std=std)
        self.proj = CastedLinear(4 * size, size, init_std=out_std)

    def forward(self, x: Tensor, changes: Changes) -> Tensor:
        """[..., C] -> [..., C]."""
        return apply_change(self.proj, F.gelu(apply_change(self.fc, x, changes.get("fc"))), changes.get("proj"))


class Block(nn.Module):
    """Pre-norm block [B, T, C] -> [B, T, C]: x <- x + attention(norm(x)); x <- x + mlp(norm(x)). One compile unit."""

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
