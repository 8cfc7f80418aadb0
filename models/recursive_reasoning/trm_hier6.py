"""TRM with several low latents (arXiv 2510.04871, ablation "multi-scale z"; six as published), updated in turn.

    repeat H_cycles times:  for i in 1..L_cycles: z_Li <- f(s, z_H + x);   z_H <- f(z_H, s)   with s = z_L1 + ... + z_L6

Only the last cycle carries a gradient. No parameter is added: the starts L1_init..L6_init are fixed buffers. A latent
beyond L_cycles is never updated and adds its start to every sum, as in the published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from models.recursive_reasoning.inner import INPUT
from models.recursive_reasoning.model import RecursiveModel
from models.recursive_reasoning.recursion import Update
from models.recursive_reasoning.trm import TRMConfig

__all__ = ["TRMHier6", "TRMHier6Config"]


@dataclass(kw_only=True)
class TRMHier6Config(TRMConfig):
    """TRM's keys and the number of low latents."""

    L_latents: int = 6
    """trm_hier6 only: low latents z_L1, z_L2, ...; within a cycle update i is that of z_Li."""

    def __post_init__(self) -> None:
        if self.L_latents < self.L_cycles:
            raise ValueError(
                f"arch.L_cycles={self.L_cycles}: update i of a cycle is that of latent z_Li and "
                f"arch.L_latents={self.L_latents}: choose arch.L_cycles <= {self.L_latents}, or more latents"
            )
        super().__post_init__()


class TRMHier6(RecursiveModel):
    """TRM whose z_L is the sum of several latents; all L_cycles + 1 updates of the last cycle carry a gradient."""

    Config: ClassVar = TRMHier6Config

    @staticmethod
    def cycles(config: TRMHier6Config) -> tuple[Sequence[Update], int]:
        lows = tuple(f"z_L{i}" for i in range(1, config.L_latents + 1))
        cycle = tuple(Update("L_level", low, lows, ("z_H", INPUT)) for low in lows[: config.L_cycles])
        cycle += (Update("L_level", "z_H", ("z_H",), lows),)
        return cycle * config.H_cycles, len(cycle)
