"""Hierarchical Reasoning Model (Wang et al. 2025, arXiv 2506.21734): a fast stack L and a slow stack H.

    repeat H_cycles times:  repeat L_cycles times: z_L <- L(z_L, z_H + x);   z_H <- H(z_H, z_L)

Only the last L and the last H update carry a gradient (the 1-step approximation of the equilibrium gradient).
A row halts if q_halt > q_continue; the target of q_continue needs a second forward pass.
"""

from __future__ import annotations

from typing import ClassVar

from models.recursive_reasoning.config import HRMConfig
from models.recursive_reasoning.inner import INPUT
from models.recursive_reasoning.model import RecursiveModel
from models.recursive_reasoning.recursion import Depth, Update, cycle_plan

__all__ = ["HRM", "HRMConfig"]


class HRM(RecursiveModel):
    """HRM: one stack per latent; the last update of each carries a gradient."""

    Config: ClassVar = HRMConfig

    @staticmethod
    def cycles(config: HRMConfig) -> Depth:
        low = Update("L_level", "z_L", ("z_L",), ("z_H", INPUT))
        high = Update("H_level", "z_H", ("z_H",), ("z_L",))
        return cycle_plan(config.H_cycles, config.L_cycles, low, high), 2
