"""One transformer block: norm placement, shared weights, value embeddings, residual scalars.

Shapes: B rows, T tokens, D width, g key and value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.language_models.attention import CausalSelfAttention, Rope
from models.language_models.cache import LayerCache
from models.language_models.config import GPTConfig, LMShape
from models.language_models.mlp import MLP
from models.language_models.norm import make_norm
from models.layers import CastedEmbedding

Streams = tuple[tuple[int, Tensor], ...]
"""(index of the vocabulary, ids [B, T]) for each stream of the input."""

_GATE_INPUTS, _GATE_PEAK = 12, 3.0  # as in nanochat


class TokenTables(nn.Module):
    """One embedding table per stream: ids [B, T] each -> [B, T, size], summed over streams."""

    def __init__(self, shape: LMShape, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            CastedEmbedding(vocab, size, init_std=0.0, cast_to=dtype) for vocab in shape.vocab_sizes
        )

    def forward(self, streams: Streams) -> Tensor:
        (number, ids), *others = streams
        x: Tensor = self.tables[number](ids)
        for number, ids in others:
            x = x + self.tables[number](ids)
        return x


class ValueEmbedding(nn.Module):
    """Gated token embedding to add to the values, [B, T, g, d]: 3·sigmoid(W x[:12]) per KV head times the embedding."""

    def __init__(self, config: GPTConfig, shape: LMShape, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.head_dim = config.kv_heads, config.head_dim
        self.words = TokenTables(shape, self.heads * self.head_dim, dtype)
        self.gate = nn.Parameter(torch.zeros(self.heads, min(_GATE_INPUTS, config.n_embd)))

    def forward(self, streams: Streams, x: Tensor) -> Tensor:
        gate = torch.sigmoid(F.linear(x[..., : self.gate.shape[1]], self.gate.to(x.dtype)))
        rows = self.words(streams)
        out: Tensor = (_GATE_PEAK * gate).unsqueeze(-1) * rows.view(*rows.shape[:2], self.heads, self.head_dim)
        return out


class Block(nn.Module):
    """Transformer block [B, T, D] -> [B, T, D]. One compile unit.

    `attn` and `mlp`, if given, are shared with another block: used but not registered here, so that every weight has
    one name.
    """

    def __init__(
        self,
        config: GPTConfig,
        shape: LMShape,
        layer: int,
        *,
        kind: str,
        dtype: torch.dtype,
        attn: CausalSelfAttention | None,
        mlp: MLP | None,
    ) -> None:
        super().__init__()
        self.layer, self.dropout = layer, config.dropout
        self.placement, self.parallel = config.norm_placement, config.use_parallel_mlp
        branches = 1 if self.parallel else 2
        before, after = self.placement != "post", self.placement != "pre"
        self.norms_in = nn.ModuleList(make_norm(config) for _ in range(branches * before))
        self.norms_out = nn.ModuleList(make_norm(config) for _ in range(branches * after))
        if attn is None:
            self.attn = CausalSelfAttention(config, kind=kind)
        else:
            self.__dict__["attn"] = attn  # bypasses nn.Module's registration
        if mlp is None:
            self.mlp = MLP(config)
        else:
            self.__dict__["mlp"] = mlp
        self.values = ValueEmbedding(config, shape, dtype) if config.has_values(layer) else None
        self.residual = nn.Parameter(torch.empty(2)) if config.residual_scalars else None

    def forward(
        self,
        x: Tensor,
        first: Tensor,
        streams: Streams,
        rope: Rope = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """first [B, T, D]: the embedded input, which `residual_scalars` mixes in again."""

        def attend(h: Tensor) -> Tensor:
            extra = None if self.values is None else self.values(streams, h)
            return self._drop(self.attn(h, rope, mask, extra, cache))

        def feed_forward(h: Tensor) -> Tensor:
            return self._drop(self.mlp(h))

        if self.residual is not None:
            keep, skip = self.residual.to(x.dtype)
            x = torch.addcmul(keep * x, skip, first)
        if self.parallel:
            return self._add(x, lambda h: attend(h) + feed_forward(h), 0)
        return self._add(self._add(x, attend, 0), feed_forward, 1)

    def _add(self, x: Tensor, branch: Callable[[Tensor], Tensor], number: int) -> Tensor:
        """Residual connection with the norms of branch `number`, by the norm placement."""
        match self.placement:
            case "pre":
                return x + branch(self.norms_in[number](x))
            case "peri":
                out: Tensor = x + self.norms_out[number](branch(self.norms_in[number](x)))
            case _:
                out = self.norms_out[number](x + branch(x))
        return out

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x
