"""The transformer without recursion that HRM is compared with (Wang et al. 2025, arXiv 2506.21734): one stack.

    z_H <- H(z_H + x), once per ACT step, with its gradient

What differs from the published code: 8 heads, which divide the width and keep the fast attention kernels; the public
12 heads of width 42 are `num_heads=12 head_dim=42` (27,145,218 parameters on ARC, 27,276,290 with 8). Rows halt on
q_halt > q_continue as there, and the target of q_continue is computed (a second pass), which the published loss never
asked for; `no_ACT_continue=true` halts on q_halt > 0 in one pass. In place of its switch act_inference, which restarted
halted rows, there is `eval_halting=latched`; act_enabled is left out, episodes are always adaptive in training.
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
