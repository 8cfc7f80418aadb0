"""Hierarchical Reasoning Model (Wang et al. 2025, arXiv 2506.21734): a fast stack L and a slow stack H.

    repeat H_cycles times:  repeat L_cycles times: z_L <- L(z_L, z_H + x);   z_H <- H(z_H, z_L)

Only the last L and the last H update carry a gradient (the 1-step approximation of the equilibrium gradient).
Halting compares q_halt with q_continue, whose target needs a second pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from models.recursive_reasoning.act import ACTModel, PuzzleShape
from models.recursive_reasoning.config import RecursiveConfig
from models.recursive_reasoning.inner import INPUT, RecursiveInner
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


class HRM(ACTModel):
    """`HRM(config, shape)`; builds under `torch.device("meta")`. auto_dtype is the compute dtype of
    forward_dtype=auto."""

    Config: ClassVar = HRMConfig

    def __init__(
        self,
        config: HRMConfig,
        shape: PuzzleShape,
        *,
        auto_dtype: torch.dtype = torch.float32,
        attention: str = "auto",
    ) -> None:
        low = Update("L_level", "z_L", ("z_L",), ("z_H", INPUT))
        high = Update("H_level", "z_H", ("z_H",), ("z_L",))
        dtype = config.compute_dtype(auto_dtype)
        inner = RecursiveInner(
            config,
            shape,
            plan=cycle_plan(config.H_cycles, config.L_cycles, low, high),
            window=2,
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
