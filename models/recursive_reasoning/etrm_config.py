"""Keys of TRM with a demonstration encoder. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from engine.fields import Inert, Range
from models.recursive_reasoning.config import LatentInit, TRMConfig

__all__ = ["TRMWithEncoderConfig", "TRMWithEncoderOnlineConfig"]

_MOST = 1000
_NO_TABLE = Inert("", "the context of the encoder takes the place of a puzzle embedding")
_SAME_START = Inert("", "search at test time compares contexts from the same start, without noise")
_ONE_CHAIN = Inert("", "episodes with an encoder begin at the start of its context and have one chain")
_FIXED = Inert("", "every example has arch.num_act_steps steps")
IN_STANDARD = Inert("arch.encoder_type=standard", "arch.encoder_type=standard has no latent")
IN_HYBRID = Inert("arch.encoder_type=hybrid_standard", "arch.encoder_type=hybrid_standard has no latent")
IN_LPN = Inert("arch.encoder_type=lpn_standard", "arch.encoder_type=lpn_standard has no latent")
IN_RECURRENT = Inert("arch.encoder_type=recurrent", "arch.encoder_type=recurrent has no latent")
IN_PERCEIVER = Inert("arch.encoder_type=perceiver", "arch.encoder_type=perceiver has no latent")

# for the encoder's own aggregation, if arch.aggregation is null
_MEAN = Inert("arch.aggregation=mean", "the mean of the demonstrations has no layers and no queries")
_OF_STANDARD = Inert("arch.aggregation=null and arch.encoder_type=standard", _MEAN.why)
_OF_LPN = Inert("arch.aggregation=null and arch.encoder_type=lpn_standard", _MEAN.why)
_OF_LATENT_LPN = Inert("arch.aggregation=null and arch.encoder_type=lpn_variational", _MEAN.why)
_OF_RECURRENT = Inert("arch.aggregation=null and arch.encoder_type=recurrent", _MEAN.why)
_SET = Inert("arch.aggregation=set_transformer", "a set transformer has no queries")
_OF_HYBRID = Inert("arch.aggregation=null and arch.encoder_type=hybrid_standard", _SET.why)


@dataclass(kw_only=True)
class TRMWithEncoderConfig(TRMConfig):
    """TRM's keys, and those of the encoder whose context replaces the puzzle embedding."""

    puzzle_emb_ndim: Annotated[int, Range(0, 0, hint="the encoder makes the context"), _NO_TABLE] = 0
    """Always 0: no parameter belongs to a puzzle."""
    puzzle_emb_len: Annotated[int, Range(0), _NO_TABLE] = 0
    """Not used: the prefix is the context, see context_len."""
    latent_init: Annotated[LatentInit, _SAME_START] = "learned"
    """Always learned: search and training at test time compare contexts from the same start."""
    update_noise: Annotated[float, Range(0, 0, hint=_SAME_START.why), _SAME_START] = 0.0
    """Always 0: as latent_init."""
    late_states: Annotated[float, Range(0, 0, hint=_ONE_CHAIN.why), _ONE_CHAIN] = 0.0
    """Always 0: episodes begin at their start."""
    late_steps: Annotated[list[int], Range(1), _ONE_CHAIN] = field(default_factory=lambda: [8, 16, 32])
    """Not used: see late_states."""
    chains: Annotated[int, Range(1, 1, hint=_ONE_CHAIN.why), _ONE_CHAIN] = 1
    """Always 1: there is one chain."""
    encoder_type: str = "standard"
    """Module in models/encoders/kinds/: standard, hybrid_standard, hybrid_variational, lpn_standard, lpn_variational,
    recurrent, perceiver."""
    encoder_num_layers: Annotated[int | None, Range(1, _MOST)] = None
    """Blocks of the transformer over each demonstration; null: the encoder's own number (table in docs/etrm.md)."""
    aggregation: Literal["mean", "set_transformer", "cross_attention"] | None = None
    """How demonstrations are combined into one context; null: the encoder's own way (table in docs/etrm.md)."""
    encoder_set_layers: Annotated[int, Range(1, _MOST), _MEAN, _OF_STANDARD, _OF_LPN, _OF_LATENT_LPN, _OF_RECURRENT] = 1
    """Blocks of the set transformer or of cross-attention."""
    query_init: Annotated[
        float, Range(above=0), _MEAN, _OF_STANDARD, _OF_LPN, _OF_LATENT_LPN, _OF_RECURRENT, _SET, _OF_HYBRID
    ] = 1.0
    """Standard deviation of the initial queries of cross-attention; at 0.02 all tokens of the first context are
    alike."""
    context_len: Annotated[int, Range(1, _MOST)] = 16
    """Context tokens T before the cells; a TRM decoder has 16."""
    context_scale: Literal["match_tokens", "learned", "none"] = "match_tokens"
    """RMS of a context token in the decoder: a cell's, that times a learned gain, or (none) sqrt(hidden_size)."""
    pairing: Literal["sequence", "cells"] = "sequence"
    """How the encoder reads a demonstration: the cells of the input, then those of the output; or each cell of the
    canvas once, with its input and output colours added."""
    grid_embedding: bool = False
    """Add learned embeddings of row and column to every cell of encoder and decoder: rotary positions only tell how far
    apart cells are, not which is in the first row or in an even one."""
    grid_shape_tokens: bool = True
    """Give the encoder the numbers of rows and columns of both grids as four more tokens."""
    latent_dim: Annotated[int, Range(0), IN_STANDARD, IN_HYBRID, IN_LPN, IN_RECURRENT, IN_PERCEIVER] = 0
    """Latent dimensions Z of a variational encoder; 0: hidden_size."""
    mlp_t: Annotated[bool, Inert("", "the encoder needs attention")] = False
    """Always false: demonstrations differ in length."""

    def __post_init__(self) -> None:
        if self.mlp_t:
            raise ValueError("arch.mlp_t=true: demonstrations differ in length, an encoder needs attention")
        if self.random_start:
            raise ValueError(f"arch.latent_init={self.latent_init}: expected learned; {_SAME_START.why}")
        super().__post_init__()

    @property
    def prefix_len(self) -> int:
        """P, the length of the context."""
        return self.context_len


@dataclass(kw_only=True)
class TRMWithEncoderOnlineConfig(TRMWithEncoderConfig):
    """TRMWithEncoder's keys with a fixed number of steps per example."""

    num_act_steps: Annotated[int, Range(1, _MOST)] = 4
    """ACT steps of every example, in training and evaluation; the encoder runs only at the first."""
    halt_max_steps: Annotated[int, Range(1), _FIXED] = 16
    """Not used: see num_act_steps."""
    halt_exploration_prob: Annotated[float, Range(0, 1), _FIXED] = 0.0
    """Not used: no example halts early."""
    eval_halting: Annotated[Literal["fixed", "latched"], _FIXED] = "fixed"
    """Not used: no example halts early."""
    no_ACT_continue: Annotated[bool, _FIXED] = True
    """Not used: nothing is decided by q values."""
