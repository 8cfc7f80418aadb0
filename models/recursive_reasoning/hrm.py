"""Hierarchical Reasoning Model (Wang et al. 2025, arXiv 2506.21734): a fast stack L and a slow stack H.

    repeat H_cycles times:  repeat L_cycles times: z_L <- L(z_L, z_H + x);   z_H <- H(z_H, z_L)

Only the last L and the last H update carry a gradient (the 1-step approximation of the equilibrium gradient).
Halting compares q_halt with q_continue, whose target needs a second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from models.recursive_reasoning.config import RecursiveConfig
from models.recursive_reasoning.inner import INPUT
from models.recursive_reasoning.model import RecursiveModel
from models.recursive_reasoning.recursion import Update, cycle_plan

__all__ = ["HRM", "HRMConfig"]


@dataclass(kw_only=True)
class HRMConfig(RecursiveConfig):
    """The published HRM: two stacks of 4 layers, 2 x 2 cycles, as few prefix positions as hold the puzzle
    vector."""

    H_cycles: int = 2
    """Outer cycles per ACT step; each ends with one update of z_H."""
    L_cycles: int = 2
    """Updates of z_L within an outer cycle."""
    H_layers: int = 4
    """Blocks of the stack that updates z_H."""
    L_layers: int = 4
    """Blocks of the stack that updates z_L."""
    no_ACT_continue: bool = False
    """False: halt on q_halt > q_continue, with a second pass for its target. True: halt on q_halt > 0
    alone."""

    def __post_init__(self) -> None:
        if self.H_layers < 1:
            raise ValueError(f"arch.H_layers={self.H_layers}: HRM has a stack of its own for z_H, expected at least 1")
        super().__post_init__()


class HRM(RecursiveModel):
    """HRM: a stack for each latent; the last update of each carries a gradient."""

    Config: ClassVar = HRMConfig

    @staticmethod
    def cycles(config: HRMConfig) -> tuple[Sequence[Update], int]:
        low = Update("L_level", "z_L", ("z_L",), ("z_H", INPUT))
        high = Update("H_level", "z_H", ("z_H",), ("z_L",))
        return cycle_plan(config.H_cycles, config.L_cycles, low, high), 2
