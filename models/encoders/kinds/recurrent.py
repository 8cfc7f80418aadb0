"""`recurrent`: TRM's recursion over the context; each ACT step continues from the state of the previous one.

    repeat H times:  repeat L times: c_L <- f(c_L, c_H + a);   c_H <- f(c_H, c_L);       context = rms(a + c_H)

a: the aggregated demonstrations as T tokens, re-encoded at every ACT step. As in the decoder the last cycle carries a
gradient; only the state for the next step is detached.

The residual a is needed: with c_H alone as context, training collapses to one fixed point, the same for all tasks and
tokens, which no gradient leads out of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.encoders.base import DemoEncoder, EncoderOutput
from models.encoders.pairs import post_norm_block
from models.layers import ReasoningStack, rms_norm, trunc_normal_
from models.recursive_reasoning.recursion import Update, cycle_plan, recur

_STATE = ("encoder_H", "encoder_L")


class Recurrent(DemoEncoder):
    """`standard` plus a stack of as many layers that refines the context."""

    def __init__(self, config: Any, shape: Any, *, dtype: torch.dtype, attention: str) -> None:
        super().__init__(config, shape, dtype=dtype, attention=attention)
        self.stack = ReasoningStack([post_norm_block(config, attention) for _ in range(self.layers)])
        low = Update("stack", "encoder_L", ("encoder_L",), ("encoder_H", "a"))
        high = Update("stack", "encoder_H", ("encoder_H",), ("encoder_L",))
        self.plan = cycle_plan(config.H_cycles, config.L_cycles, low, high)
        self.window = config.L_cycles + 1
        for name in _STATE:
            start = trunc_normal_(torch.empty(config.context_len, config.hidden_size), 1.0)
            self.register_buffer(f"{name}_init", start)

    def initial(self, rows: int) -> dict[str, Tensor]:
        return {name: self.get_buffer(f"{name}_init").to(self.dtype).expand(rows, -1, -1) for name in _STATE}

    def refine(self, context: Tensor, state: dict[str, Tensor]) -> EncoderOutput:
        """One step from `state`; `context` [B,T,D] is a, the aggregated demonstrations."""

        def call(stack: str, hidden: Tensor, injection: Tensor | None) -> Tensor:
            out: Tensor = self.get_submodule(stack)(hidden, injection)
            return out

        values = recur(self.plan, self.window, {**state, "a": context}, call)
        refined = rms_norm(context + values["encoder_H"], self.config.rms_norm_eps)
        return EncoderOutput(refined, state={name: values[name].detach() for name in _STATE})
