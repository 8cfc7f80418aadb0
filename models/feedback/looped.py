"""A base that loops some of its blocks, with a stable injection of the loop's input.

    e = prelude(x);  h = e;  loops times:  h <- exp(-Δ·exp(a)) ⊙ h + Δ ⊙ (B e),  h <- blocks(h);  coda(h)

with Δ = softplus(b), so that the decay stays between 0 and 1 (the linear state-space form of stable looped models).
Initially B = I, Δ = 1/2 and the decay is 1/2: the input of the first repetition is e itself.
Shapes: B rows, T positions, C width.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.feedback.base import BaseLM, Delta
from models.feedback.config import LoopedConfig, TextShape
from models.feedback.layers import Rope
from models.layers import cast_linear

_STEP = 0.5  # initial Δ; the initial decay is 1 - Δ


class Injection(nn.Module):
    """h, e [B, T, C] -> exp(-Δ·exp(a)) ⊙ h + Δ ⊙ (B e). Its parameters should have no weight decay."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.full((size,), math.log(-math.log(1 - _STEP) / _STEP)))
        self.b = nn.Parameter(torch.full((size,), math.log(math.expm1(_STEP))))
        self.mix = nn.Parameter(torch.eye(size))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        step = F.softplus(self.b)
        decay = torch.exp(-step * self.a.exp())
        return decay.to(h.dtype) * h + step.to(h.dtype) * cast_linear(e, self.mix)


class LoopedLM(BaseLM):
    """BaseLM whose blocks loop_start .. loop_start + loop_layers - 1 are applied `loops` times."""

    Config: ClassVar = LoopedConfig

    def __init__(self, config: LoopedConfig, shape: TextShape, **options: Any) -> None:
        super().__init__(config, shape, **options)
        self.injection = Injection(config.n_embd).to(self.wte.embedding_weight)

    def stream(self, x: Tensor, rope: Rope, mask: Tensor | None, delta: Delta | None) -> list[Tensor]:
        """The residual stream [B, T, C] before the first block and after the last application of each: L + 1
        tensors."""
        config = self.config
        states, end = [x], config.loop_start + config.loop_layers
        for number in range(config.loop_start):
            states.append(self.block(number, states[-1], rope, mask, delta))
        start = h = states[-1]
        for _ in range(config.loops):
            states = states[: config.loop_start + 1]
            h = self.injection(h, start)
            for number in range(config.loop_start, end):
                h = self.block(number, h, rope, mask, delta)
                states.append(h)
        for number in range(end, config.n_layer):
            states.append(self.block(number, states[-1], rope, mask, delta))
        return states
