"""Building blocks shared by every recursive model.

Shape legend: B rows, T tokens, P prefix positions, S = P + T positions, D width, h heads, d = D // h, I inner
width, V words.
"""

from __future__ import annotations

from models.layers.attention import ATTENTION_KINDS, Attention, AttentionKind
from models.layers.block import ReasoningBlock, ReasoningStack
from models.layers.composed import composed
from models.layers.init import trunc_normal_
from models.layers.linear import (
    CastedEmbedding,
    CastedLinear,
    GridEmbedding,
    WordHead,
    cached_casts,
    cast_linear,
    word_logits,
)
from models.layers.mlp import SwiGLU, swiglu_inner_size
from models.layers.norm import rms_norm
from models.layers.rotary import RotaryTables, apply_rotary, grid_positions, line_positions

__all__ = [
    "ATTENTION_KINDS",
    "Attention",
    "AttentionKind",
    "CastedEmbedding",
    "CastedLinear",
    "GridEmbedding",
    "ReasoningBlock",
    "ReasoningStack",
    "RotaryTables",
    "SwiGLU",
    "WordHead",
    "apply_rotary",
    "cached_casts",
    "cast_linear",
    "composed",
    "grid_positions",
    "line_positions",
    "rms_norm",
    "swiglu_inner_size",
    "trunc_normal_",
    "word_logits",
]
