"""TRM with several low latents updated in turn (arXiv 2510.04871, ablation "multi-scale z"; six as published).

    repeat H_cycles times:  for i in 1..L_cycles: z_Li <- f(s, z_H + x);   z_H <- f(z_H, s)   with s = z_L1 + ... + z_L6

Only the last cycle carries a gradient. There are no extra parameters: the initial values L1_init..L6_init are fixed
buffers. As in the published code, latents beyond L_cycles are never updated but still part of every sum.
"""

from __future__ import annotations

from typing import ClassVar

from models.recursive_reasoning.config import TRMHier6Config
from models.recursive_reasoning.inner import INPUT
from models.recursive_reasoning.model import RecursiveModel
from models.recursive_reasoning.recursion import Depth, Update

__all__ = ["TRMHier6", "TRMHier6Config"]


class TRMHier6(RecursiveModel):
    """TRM whose z_L is the sum of several latents; all L_cycles + 1 updates of the last cycle carry a gradient."""

    Config: ClassVar = TRMHier6Config

    @staticmethod
    def cycles(config: TRMHier6Config) -> Depth:
        lows = tuple(f"z_L{i}" for i in range(1, config.L_latents + 1))
        cycle = tuple(Update("L_level", low, lows, ("z_H", INPUT)) for low in lows[: config.L_cycles])
        cycle += (Update("L_level", "z_H", ("z_H",), lows),)
        return cycle * config.H_cycles, len(cycle)
