"""TRM with one latent (arXiv 2510.04871, ablation "single z"): z_L is refined with the input, then once without it.

    repeat H_cycles times:  repeat L_cycles times: z_L <- f(z_L + x);   z_L <- f(z_L)

Only the last cycle carries a gradient. The published code adds x outside the stack; the result is bit-identical.
"""

from __future__ import annotations

from typing import ClassVar

from models.recursive_reasoning.inner import INPUT
from models.recursive_reasoning.model import RecursiveModel
from models.recursive_reasoning.recursion import Depth, Update, cycle_plan
from models.recursive_reasoning.trm import TRMConfig

__all__ = ["TRMSingleZ"]


class TRMSingleZ(RecursiveModel):
    """TRM without z_H: the heads read z_L, and each cycle ends with an update of z_L without the input."""

    Config: ClassVar = TRMConfig
    readout: ClassVar[str] = "z_L"

    @staticmethod
    def cycles(config: TRMConfig) -> Depth:
        low = Update("L_level", "z_L", ("z_L",), (INPUT,))
        high = Update("L_level", "z_L", ("z_L",))
        return cycle_plan(config.H_cycles, config.L_cycles, low, high), config.L_cycles + 1
