"""Transformer over one demonstration, an input and an output grid: one vector per pair, or one per token.

Only existing pairs are encoded. Padding is trimmed to the longest pair of the batch and the rest masked in attention
and pooling; a cell keeps the position that it has in the full pair.

Shapes: B rows, K demonstrations, N existing pairs, S cells of a grid, P prefix tokens, L tokens of the longest pair, D
width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.layers import (
    Attention,
    CastedEmbedding,
    CastedLinear,
    GridEmbedding,
    ReasoningBlock,
    RotaryTables,
    SwiGLU,
    line_positions,
    rms_norm,
    trunc_normal_,
)

END = 1
"""Token that marks the border of a grid; greater tokens are cells."""
SIZES = 4  # rows and columns of both grids


class PreNormBlock(nn.Module):
    """x <- x + attention(rms(x));  x <- x + mlp(rms(x)), as in LPN (Macfarlane & Bonnet 2024, arXiv 2411.08706)."""

    def __init__(self, config: Any, attention: str) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.self_attn = Attention(config.hidden_size, config.num_heads, head_dim=config.head_width, kind=attention)
        self.mlp = SwiGLU(
            config.hidden_size, config.expansion, multiple=config.inner_multiple, gate_norm=config.gate_norm
        )

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None, keys: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(rms_norm(x, self.eps), rope, keys)
        out: Tensor = x + self.mlp(rms_norm(x, self.eps))
        return out


def post_norm_block(config: Any, attention: str) -> ReasoningBlock:
    """TRM's block, with attention."""
    return ReasoningBlock(
        size=config.hidden_size,
        num_heads=config.num_heads,
        head_dim=config.head_width,
        expansion=config.expansion,
        multiple=config.inner_multiple,
        gate_norm=config.gate_norm,
        eps=config.rms_norm_eps,
        length=0,
        mlp_t=False,
        attention=attention,
    )


class PairEncoder(nn.Module):
    """demo_inputs, demo_labels [B,K,S], demo_mask [B,K] -> [B,K,D], zero in empty slots.

    With `pooled=False` use `tokens`, which returns all tokens.

    Raises: ValueError for shape tokens, grid embeddings or 2-D positions if the grid is not square.
    """

    def __init__(
        self,
        config: Any,
        shape: Any,
        *,
        layers: int,
        pre_norm: bool,
        pooled: bool,
        dtype: torch.dtype,
        attention: str,
    ) -> None:
        super().__init__()
        size, self.cells, self.pad_id = config.hidden_size, shape.seq_len, shape.pad_id
        self.eps, self.scale, self.dtype = config.rms_norm_eps, math.sqrt(size), dtype
        self.side, self.by_cell = math.isqrt(self.cells), config.pairing == "cells"
        planar = config.pos_encodings == "rope_2d"
        if self.side**2 != self.cells and (planar or config.grid_shape_tokens or config.grid_embedding):
            raise ValueError(
                "arch.grid_shape_tokens, arch.grid_embedding and arch.pos_encodings=rope_2d need square grids, the "
                f"data have {self.cells} cells: choose arch.grid_shape_tokens=false arch.grid_embedding=false "
                "arch.pos_encodings=rope"
            )
        self.embed_words = CastedEmbedding(2 * shape.vocab_size, size, init_std=1 / self.scale, cast_to=dtype)
        self.vocab = shape.vocab_size
        self.embed_shape = None
        if config.grid_shape_tokens:
            self.embed_shape = CastedEmbedding(SIZES * (self.side + 1), size, init_std=1 / self.scale, cast_to=dtype)
        self.embed_places = None
        if config.grid_embedding:
            self.embed_places = GridEmbedding(self.side, size, init_std=1 / self.scale, cast_to=dtype)
        cls = pre_norm and pooled
        self.cls = nn.Parameter(trunc_normal_(torch.empty(size), 1 / self.scale)) if cls else None
        self.prefix = (self.cls is not None) + SIZES * (self.embed_shape is not None)
        self.rotary = RotaryTables(
            config.head_width,
            _positions(self.cells, planar),
            theta=config.rope_theta,
            dtype=torch.promote_types(dtype, torch.float32),
        )
        make = PreNormBlock if pre_norm else post_norm_block
        self.layers = nn.ModuleList([make(config, attention) for _ in range(layers)])
        self.pool = CastedLinear(size, size) if pooled and not pre_norm else None
        self.packed = True

    @contextmanager
    def unpacked(self) -> Iterator[None]:
        """Context in which empty slots and padding are computed too and then dropped: the same result, but without
        data-dependent shapes, which torch.func.vmap needs."""
        self.packed = False
        try:
            yield
        finally:
            self.packed = True

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        tokens, present = self._tokens_of(demo_inputs, demo_labels, demo_mask)
        if not self.packed:
            pooled = self._pool(*self._encode(tokens))
            return torch.where(present.unsqueeze(-1), pooled, 0).view(*demo_mask.shape, -1)
        chosen = present.nonzero().squeeze(1)
        out = torch.zeros(len(tokens), self.width, dtype=self.dtype, device=tokens.device)
        if len(chosen):
            out = out.index_copy(0, chosen, self._pool(*self._encode(tokens[chosen])))
        return out.view(*demo_mask.shape, -1)

    def tokens(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens (prefix and cells) of the demonstrations, [B, K·(P + L), D], and their mask."""
        tokens, present = self._tokens_of(demo_inputs, demo_labels, demo_mask)
        rows = len(demo_mask)
        if not self.packed:
            encoded, keys = self._encode(tokens)
            encoded = torch.where(present[:, None, None], encoded, 0)  # empty rows attend to zeros
            return encoded.reshape(rows, -1, self.width), (keys & present[:, None]).reshape(rows, -1)
        chosen = present.nonzero().squeeze(1)
        if not len(chosen):
            none = torch.zeros(rows, 1, dtype=torch.bool, device=tokens.device)
            return torch.zeros(rows, 1, self.width, dtype=self.dtype, device=tokens.device), none
        encoded, keys = self._encode(tokens[chosen])
        out = encoded.new_zeros(len(tokens), *encoded.shape[1:]).index_copy(0, chosen, encoded)
        mask = keys.new_zeros(len(tokens), keys.shape[1]).index_copy(0, chosen, keys)
        return out.view(rows, -1, self.width), mask.view(rows, -1)

    def _tokens_of(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B·K, 2S] of all slots, and which slots hold a demonstration [B·K]."""
        tokens = torch.cat((demo_inputs, demo_labels), dim=-1).flatten(0, 1)
        tokens = torch.where(tokens < 0, self.pad_id, tokens)  # ignored labels
        return tokens, demo_mask.flatten() & (tokens != self.pad_id).any(dim=1)

    @property
    def width(self) -> int:
        """D."""
        return self.embed_words.embedding_weight.shape[1]

    def _encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode tokens [N, 2S] -> hidden states [N, P + L, D] and their mask."""
        real = tokens != self.pad_id
        if self.by_cell:
            real = real.view(-1, 2, self.cells).any(dim=1)
        if self.packed:
            longest = int(real.sum(dim=1).max())
            order = real.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]  # padding last
            keys = real.gather(1, order)
        else:
            order = torch.arange(real.shape[1], device=tokens.device).expand(len(tokens), -1)
            keys = real | ~real.any(dim=1, keepdim=True)  # attention over no keys would be NaN
        h = torch.cat([*self._prefix_tokens(tokens), self._embed(tokens, order)], dim=1) * self.scale
        keys = torch.cat((keys.new_ones(len(keys), self.prefix), keys), dim=1)
        rope = self._rope(order)
        for layer in self.layers:
            h = layer(h, rope, keys)
        return h, keys

    def _pool(self, h: Tensor, keys: Tensor) -> Tensor:
        """Pool [N, P + L, D] -> [N, D]: at CLS, or the mean."""
        if self.pool is None:
            return rms_norm(h[:, 0], self.eps)
        weight = keys.unsqueeze(-1).to(h.dtype)
        pooled: Tensor = self.pool((h * weight).sum(1) / weight.sum(1))
        return pooled

    def _embed(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Embed the tokens [N, 2S] (by_cell: the cells) at positions `order` [N, L] -> [N, L, D]."""
        if self.by_cell:
            outputs = tokens.gather(1, order + self.cells) + self.vocab
            parts = [self.embed_words(tokens.gather(1, order)), self.embed_words(outputs)]
        else:
            parts = [self.embed_words(tokens.gather(1, order) + self.vocab * (order >= self.cells))]
        if self.embed_places is not None:
            parts.append(self.embed_places()[order % self.cells])
        return torch.stack(parts).sum(0) / math.sqrt(len(parts))  # keeps the variance

    def _prefix_tokens(self, tokens: Tensor) -> list[Tensor]:
        """Tokens before the cells: CLS [N,1,D], numbers of rows and columns of both grids [N,4,D]."""
        parts = []
        if self.cls is not None:
            parts.append(self.cls.to(self.dtype).expand(len(tokens), 1, -1))
        if self.embed_shape is not None:
            kinds = torch.arange(SIZES, device=tokens.device) * (self.side + 1)
            parts.append(self.embed_shape(grid_sizes(tokens, self.side) + kinds))
        return parts

    def _rope(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables [N, P + L, 1, d]; prefix tokens are at position 0, so they are not rotated."""
        prefix = order.new_zeros(len(order), self.prefix)
        positions = torch.cat((prefix, order + 1), dim=1)
        cos, sin = self.rotary()
        return cos[positions], sin[positions]


def grid_sizes(tokens: Tensor, side: int) -> Tensor:
    """Grid sizes of tokens [N, 2S] -> [N, 4]: rows and columns of the input, then of the output (0 if empty)."""
    cells = (tokens > END).view(len(tokens), 2, side, side)
    sizes = []
    for grid in cells.unbind(1):
        for other in (2, 1):
            filled = grid.any(dim=other)  # [N, side]
            index = torch.arange(side, device=tokens.device)
            last = torch.where(filled, index + 1, 0).amax(dim=1)
            first = torch.where(filled, index, side).amin(dim=1)
            sizes.append((last - first).clamp(min=0))
    return torch.stack(sizes, dim=1)


def _positions(cells: int, planar: bool) -> Tensor:
    """Positions of [prefix; input cells; output cells]: along the pair [1+2S, 1], or by row and column [1+2S, 2]. In
    2-D both grids share their positions; their token ids differ."""
    if not planar:
        return line_positions(1 + 2 * cells)
    index, side = torch.arange(cells, device="cpu"), math.isqrt(cells)
    grid = 1 + torch.stack((index // side, index % side), dim=1)
    return torch.cat((torch.zeros(1, 2, dtype=grid.dtype, device="cpu"), grid, grid))
