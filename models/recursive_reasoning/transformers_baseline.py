"""The non-recursive transformer baseline of HRM (Wang et al. 2025, arXiv 2506.21734): one stack.

    z_H <- H(z_H + x), once per ACT step, with gradient

Differences from the published code: 8 heads, which divide the width and so allow the fast attention kernels; the public
12 heads of width 42 are `num_heads=12 head_dim=42` (27,145,218 parameters on ARC, 27,276,290 with 8). Rows halt on
q_halt > q_continue as published, but the target of q_continue, which the published loss never used, is computed (with
a second forward pass); `no_ACT_continue=true` halts on q_halt > 0 with one pass. `eval_halting=latched` replaces
act_inference, which restarted halted rows. There is no act_enabled: training episodes are always adaptive.
"""

from __future__ import annotations

from typing import ClassVar

from models.recursive_reasoning.config import TransformerBaselineConfig
from models.recursive_reasoning.inner import INPUT
from models.recursive_reasoning.model import RecursiveModel
from models.recursive_reasoning.recursion import Depth, Update

__all__ = ["TransformerBaseline", "TransformerBaselineConfig"]


class TransformerBaseline(RecursiveModel):
    """One latent z_H, one call of one stack per ACT step."""

    Config: ClassVar = TransformerBaselineConfig

    @staticmethod
    def cycles(config: TransformerBaselineConfig) -> Depth:
        del config  # nothing to choose
        return (Update("H_level", "z_H", ("z_H",), (INPUT,)),), 1
