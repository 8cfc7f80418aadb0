"""Tiny Recursive Model (Jolicoeur-Martineau 2025, arXiv 2510.04871): one small stack f refines z_L, then z_H.

    repeat H_cycles times:  repeat L_cycles times: z_L <- f(z_L, z_H + x);   z_H <- f(z_H, z_L)

Only the last cycle carries a gradient. `mlp_t=true` is the paper's attention-free form for short sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from models.recursive_reasoning.config import RecursiveConfig
from models.recursive_reasoning.inner import INPUT
from models.recursive_reasoning.model import RecursiveModel
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


class TRM(RecursiveModel):
    """TRM: f serves both latents; all L_cycles + 1 updates of the last cycle carry a gradient."""

    Config: ClassVar = TRMConfig

    @staticmethod
    def cycles(config: TRMConfig) -> tuple[Sequence[Update], int]:
        low = Update("L_level", "z_L", ("z_L",), ("z_H", INPUT))
        high = Update("L_level", "z_H", ("z_H",), ("z_L",))
        return cycle_plan(config.H_cycles, config.L_cycles, low, high), config.L_cycles + 1
