"""One demonstration, an input and an output grid, as one vector or one for each cell: a transformer over both grids.

Only pairs that exist are encoded, and of a pair only its words: padding is cut away as far as the longest pair of the
batch allows, the rest is hidden from attention and pooling. A cell keeps the position that it has in the whole pair.

Shapes: B rows, K demonstrations, N pairs that exist, S cells, G shape tokens, L = P + words of the longest pair, D.
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
"""The word that frames a grid; words above it are cells."""
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
    """demo_inputs, demo_labels [B,K,S], demo_mask [B,K] -> [B,K,D], zero where there is no demonstration.

    Not `pooled`: all words of a row's demonstrations, see `words`.

    Raises: ValueError where shape tokens (or 2-D positions) are asked for and the grid is not square.
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
        """Block in which places without a demonstration, and padding, are computed like all else, then dropped: the
        same result from shapes that do not depend on the data, which torch.func.vmap needs."""
        self.packed = False
        try:
            yield
        finally:
            self.packed = True

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        words, present = self._words_of(demo_inputs, demo_labels, demo_mask)
        if not self.packed:
            pooled = self._pooled(*self._encode(words))
            return torch.where(present.unsqueeze(-1), pooled, 0).view(*demo_mask.shape, -1)
        chosen = present.nonzero().squeeze(1)
        out = torch.zeros(len(words), self.width, dtype=self.dtype, device=words.device)
        if len(chosen):
            out = out.index_copy(0, chosen, self._pooled(*self._encode(words[chosen])))
        return out.view(*demo_mask.shape, -1)

    def words(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> tuple[Tensor, Tensor]:
        """All words (cells, shape tokens) of a row's demonstrations [B, K·L, D], and which of them there are."""
        words, present = self._words_of(demo_inputs, demo_labels, demo_mask)
        rows = len(demo_mask)
        if not self.packed:
            encoded, keys = self._encode(words)
            encoded = torch.where(present[:, None, None], encoded, 0)  # a row without any reads zeros
            return encoded.reshape(rows, -1, self.width), (keys & present[:, None]).reshape(rows, -1)
        chosen = present.nonzero().squeeze(1)
        if not len(chosen):
            none = torch.zeros(rows, 1, dtype=torch.bool, device=words.device)
            return torch.zeros(rows, 1, self.width, dtype=self.dtype, device=words.device), none
        encoded, keys = self._encode(words[chosen])
        out = encoded.new_zeros(len(words), *encoded.shape[1:]).index_copy(0, chosen, encoded)
        there = keys.new_zeros(len(words), keys.shape[1]).index_copy(0, chosen, keys)
        return out.view(rows, -1, self.width), there.view(rows, -1)

    def _words_of(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The words [B·K, 2S] of all places, and at which of them there is a demonstration [B·K]."""
        words = torch.cat((demo_inputs, demo_labels), dim=-1).flatten(0, 1)
        words = torch.where(words < 0, self.pad_id, words)  # labels that count nowhere
        return words, demo_mask.flatten() & (words != self.pad_id).any(dim=1)

    @property
    def width(self) -> int:
        """D."""
        return self.embed_words.embedding_weight.shape[1]

    def _encode(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """words [N, 2S] -> [N, P + L, D], and which of them there are."""
        real = words != self.pad_id
        if self.by_cell:
            real = real.view(-1, 2, self.cells).any(dim=1)
        if self.packed:
            longest = int(real.sum(dim=1).max())
            order = real.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]  # words first
            keys = real.gather(1, order)
        else:
            order = torch.arange(real.shape[1], device=words.device).expand(len(words), -1)
            keys = real | ~real.any(dim=1, keepdim=True)  # attention needs something to read
        h = torch.cat([*self._ahead(words), self._embedded(words, order)], dim=1) * self.scale
        keys = torch.cat((keys.new_ones(len(keys), self.prefix), keys), dim=1)
        rope = self._rope(order)
        for layer in self.layers:
            h = layer(h, rope, keys)
        return h, keys

    def _pooled(self, h: Tensor, keys: Tensor) -> Tensor:
        """[N, P + L, D] -> [N, D]."""
        if self.pool is None:
            return rms_norm(h[:, 0], self.eps)
        weight = keys.unsqueeze(-1).to(h.dtype)
        pooled: Tensor = self.pool((h * weight).sum(1) / weight.sum(1))
        return pooled

    def _embedded(self, words: Tensor, order: Tensor) -> Tensor:
        """The words [N, 2S], or cells, in the places `order` [N, L] -> [N, L, D]."""
        if self.by_cell:
            outputs = words.gather(1, order + self.cells) + self.vocab
            parts = [self.embed_words(words.gather(1, order)), self.embed_words(outputs)]
        else:
            parts = [self.embed_words(words.gather(1, order) + self.vocab * (order >= self.cells))]
        if self.embed_places is not None:
            parts.append(self.embed_places()[order % self.cells])
        return torch.stack(parts).sum(0) / math.sqrt(len(parts))  # the variance of one summand

    def _ahead(self, words: Tensor) -> list[Tensor]:
        """What stands before the cells: CLS [N,1,D], rows and columns of both grids [N,4,D]."""
        parts = []
        if self.cls is not None:
            parts.append(self.cls.to(self.dtype).expand(len(words), 1, -1))
        if self.embed_shape is not None:
            kinds = torch.arange(SIZES, device=words.device) * (self.side + 1)
            parts.append(self.embed_shape(grid_sizes(words, self.side) + kinds))
        return parts

    def _rope(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Tables [N, L, 1, d]; what stands before the cells is at position 0, which turns nothing."""
        ahead = order.new_zeros(len(order), self.prefix)
        places = torch.cat((ahead, order + 1), dim=1)
        cos, sin = self.rotary()
        return cos[places], sin[places]


def grid_sizes(words: Tensor, side: int) -> Tensor:
    """words [N, 2S] -> [N, 4]: rows and columns of the input, rows and columns of the output (0 of an empty grid)."""
    cells = (words > END).view(len(words), 2, side, side)
    sizes = []
    for grid in cells.unbind(1):
        for other in (2, 1):
            filled = grid.any(dim=other)  # [N, side]
            places = torch.arange(side, device=words.device)
            last = torch.where(filled, places + 1, 0).amax(dim=1)
            first = torch.where(filled, places, side).amin(dim=1)
            sizes.append((last - first).clamp(min=0))
    return torch.stack(sizes, dim=1)


def _positions(cells: int, planar: bool) -> Tensor:
    """Positions of [nothing; input cells; output cells]: along the pair [1+2S, 1], or by row and column [1+2S, 2]; both
    grids then have the same, their words differ."""
    if not planar:
        return line_positions(1 + 2 * cells)
    places, side = torch.arange(cells, device="cpu"), math.isqrt(cells)
    grid = 1 + torch.stack((places // side, places % side), dim=1)
    return torch.cat((torch.zeros(1, 2, dtype=grid.dtype, device="cpu"), grid, grid))
