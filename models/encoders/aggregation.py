"""Aggregate the vectors of K demonstrations, as a set, to one vector or T tokens.

    mean              masked mean
    set_transformer   self-attention among the demonstrations, then their mean (Lee et al. 2019, arXiv 1810.00825)
    cross_attention   T learned queries attend to the demonstrations; each becomes one context token

Shapes: B rows, K demonstrations, D width, T context tokens, h heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.encoders.pairs import post_norm_block
from models.layers import CastedLinear, SwiGLU, fused_attention, rms_norm, trunc_normal_


def masked_mean(vectors: Tensor, mask: Tensor) -> Tensor:
    """Mean of vectors [B, K, W] over mask [B, K] -> [B, W]; zero for rows with an empty mask."""
    weight = mask.unsqueeze(-1).to(vectors.dtype)
    total: Tensor = (vectors * weight).sum(1)
    return total / weight.sum(1).clamp(min=1)


def readable(mask: Tensor) -> Tensor:
    """The mask, all true in empty rows: attention over no keys would give NaN, over zeros it gives zeros."""
    return mask | ~mask.any(dim=1, keepdim=True)


class Mean(nn.Module):
    """[B, K, D] -> [B, 1, D]."""

    tokens = 1

    def __init__(self, config: Any, attention: str) -> None:
        super().__init__()

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        return masked_mean(vectors, mask).unsqueeze(1)


class SetTransformer(nn.Module):
    """[B, K, D] -> [B, 1, D]."""

    tokens = 1

    def __init__(self, config: Any, attention: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([post_norm_block(config, attention) for _ in range(config.encoder_set_layers)])

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        keys = readable(mask)
        for layer in self.layers:
            vectors = layer(vectors, None, keys)
        return masked_mean(vectors, mask).unsqueeze(1)


class CrossBlock(nn.Module):
    """Post-norm: q <- rms(q + attention(q, demonstrations));  q <- rms(q + mlp(q))."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, width = config.hidden_size, config.num_heads * config.head_width
        self.num_heads, self.eps = config.num_heads, config.rms_norm_eps
        self.q_proj, self.kv_proj = CastedLinear(size, width), CastedLinear(size, 2 * width)
        self.o_proj = CastedLinear(width, size)
        self.mlp = SwiGLU(size, config.expansion, multiple=config.inner_multiple, gate_norm=config.gate_norm)

    def forward(self, queries: Tensor, vectors: Tensor, keys: Tensor) -> Tensor:
        """queries [B,T,D], vectors [B,K,D], keys [B,K] -> [B,T,D]."""
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q_proj(queries), *self.kv_proj(vectors).chunk(2, dim=-1))
        )
        mixed = fused_attention(q, k, v, attn_mask=keys[:, None, None, :])
        queries = rms_norm(queries + self.o_proj(mixed.transpose(1, 2).flatten(2)), self.eps)
        return rms_norm(queries + self.mlp(queries), self.eps)


class CrossAttention(nn.Module):
    """[B, K, D] -> [B, T, D]. With a small `query_init` all T tokens start out alike (cosine 0.999)."""

    def __init__(self, config: Any, attention: str) -> None:
        super().__init__()
        self.tokens = config.context_len
        queries = trunc_normal_(torch.empty(self.tokens, config.hidden_size), config.query_init)
        self.queries = nn.Parameter(queries)
        self.layers = nn.ModuleList([CrossBlock(config) for _ in range(config.encoder_set_layers)])

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        keys = readable(mask)
        tokens = self.queries.to(vectors.dtype).expand(len(vectors), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, vectors, keys)
        return tokens


AGGREGATORS: dict[str, Any] = {"mean": Mean, "set_transformer": SetTransformer, "cross_attention": CrossAttention}
