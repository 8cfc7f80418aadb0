"""Tiny Recursive Model (Jolicoeur-Martineau 2025, arXiv 2510.04871): one small stack f refines z_L, then z_H.

    repeat H_cycles times:  repeat L_cycles times: z_L <- f(z_L, z_H + x);   z_H <- f(z_H, z_L)

Only the last cycle carries a gradient. `mlp_t=true` is the paper's attention-free variant for short sequences.
"""

from __future__ import annotations

from typing import ClassVar

from models.recursive_reasoning.config import TRMConfig
from models.recursive_reasoning.inner import INPUT
from models.recursive_reasoning.model import RecursiveModel
from models.recursive_reasoning.recursion import Depth, Update, cycle_plan

__all__ = ["TRM", "TRMConfig"]


class TRM(RecursiveModel):
    """TRM: one stack updates both latents; all L_cycles + 1 updates of the last cycle carry a gradient."""

    Config: ClassVar = TRMConfig

    @staticmethod
    def cycles(config: TRMConfig) -> Depth:
        low = Update("L_level", "z_L", ("z_L",), ("z_H", INPUT))
        high = Update("L_level", "z_H", ("z_H",), ("z_L",))
        return cycle_plan(config.H_cycles, config.L_cycles, low, high), config.L_cycles + 1
