"""Building blocks shared by the models.

Shape legend: B rows, T tokens, P prefix positions, S = P + T positions, D width, h heads, d = D // h, I inner width,
V vocabulary.
"""

from __future__ import annotations

from models.layers.attention import ATTENTION_KINDS, Attention, AttentionKind, fused_attention
from models.layers.block import ReasoningBlock, ReasoningStack
from models.layers.init import trunc_normal_
from models.layers.linear import (
    CastedEmbedding,
    CastedLinear,
    GridEmbedding,
    LMHead,
    cached_casts,
    cast_linear,
    tied_logits,
)
from models.layers.mlp import SwiGLU, swiglu_inner_size
from models.layers.native_ops import native_ops
from models.layers.norm import rms_norm
from models.layers.product import in_float32, matmul
from models.layers.rotary import RotaryTables, apply_rotary, grid_positions, line_positions

__all__ = [
    "ATTENTION_KINDS",
    "Attention",
    "AttentionKind",
    "CastedEmbedding",
    "CastedLinear",
    "GridEmbedding",
    "LMHead",
    "ReasoningBlock",
    "ReasoningStack",
    "RotaryTables",
    "SwiGLU",
    "apply_rotary",
    "cached_casts",
    "cast_linear",
    "fused_attention",
    "grid_positions",
    "in_float32",
    "line_positions",
    "matmul",
    "native_ops",
    "rms_norm",
    "swiglu_inner_size",
    "tied_logits",
    "trunc_normal_",
]
