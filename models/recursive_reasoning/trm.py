"""Tiny Recursive Model (Jolicoeur-Martineau 2025, arXiv 2510.04871): one small stack f refines z_L, then z_H.

    repeat H_cycles times:  repeat L_cycles times: z_L <- f(z_L, z_H + x);   z_H <- f(z_H, z_L)

Only the last cycle carries a gradient. `mlp_t=true` is the paper's attention-free form for short sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from models.recursive_reasoning.act import ACTModel, PuzzleShape
from models.recursive_reasoning.config import RecursiveConfig
from models.recursive_reasoning.inner import INPUT, RecursiveInner
from models.recursive_reasoning.recursion import Update, cycle_plan

__all__ = ["TRM", "TRMConfig"]


@dataclass(kw_only=True)
class TRMConfig(RecursiveConfig):
    """The published TRM: 2 layers, 3 x 6 cycles, a puzzle vector spread over 16 prefix positions."""

    H_layers: int = 0
    """Always 0: TRM has one stack, sized by L_layers."""
    puzzle_emb_len: int = 16
    """Prefix positions P that the puzzle vector is laid out over; 0: as few as hold it."""

    def __post_init__(self) -> None:
        if self.H_layers:
            raise ValueError(
                f"arch.H_layers={self.H_layers}: TRM has one stack; set arch.L_layers and leave H_layers at 0"
            )
        super().__post_init__()


class TRM(ACTModel):
    """`TRM(config, shape)`; builds under `torch.device("meta")`. auto_dtype is the compute dtype of
    forward_dtype=auto."""

    Config: ClassVar = TRMConfig

    def __init__(
        self,
        config: TRMConfig,
        shape: PuzzleShape,
        *,
        auto_dtype: torch.dtype = torch.float32,
        attention: str = "auto",
    ) -> None:
        low = Update("L_level", "z_L", ("z_L",), ("z_H", INPUT))
        high = Update("L_level", "z_H", ("z_H",), ("z_L",))
        dtype = config.compute_dtype(auto_dtype)
        inner = RecursiveInner(
            config,
            shape,
            plan=cycle_plan(config.H_cycles, config.L_cycles, low, high),
            window=config.L_cycles + 1,
            dtype=dtype,
            attention=attention,
        )
        super().__init__(
            inner,
            halt_max_steps=config.halt_max_steps,
            halt_exploration_prob=config.halt_exploration_prob,
            no_ACT_continue=config.no_ACT_continue,
        )
        if dtype == torch.float64:
            self.double()
