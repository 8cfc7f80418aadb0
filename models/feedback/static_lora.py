"""Static LoRA, the same for all samples: the baseline for hypernetworks. L blocks, r rank, n and m widths."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.feedback.adapter import Adapter
from models.feedback.adapter_config import AdapterShape, StaticLoraConfig
from models.feedback.base import BaseLM
from models.feedback.batch import BaseOutput, Batch
from models.feedback.delta import LoraDelta


class StaticLora(Adapter):
    """One LoRA (arXiv 2106.09685) for all samples: per target A [L, r, n], random, and B [L, r, m], zero."""

    Config: ClassVar = StaticLoraConfig

    def __init__(self, config: StaticLoraConfig, shape: AdapterShape, **options: Any) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        blocks, rank = shape.base.n_layer, config.lora_rank
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        for target in config.targets:
            n, m = shape.base.sides(target)
            self.a[target] = nn.Parameter(torch.empty(blocks, rank, n).normal_(std=1 / math.sqrt(n)))
            self.b[target] = nn.Parameter(torch.zeros(blocks, rank, m))

    def make_delta(
        self, base: BaseLM, batch: Batch, previous: BaseOutput | None, previous_delta: Any
    ) -> tuple[LoraDelta, Tensor | None]:
        """(the delta with one row, no penalty)."""
        return self.static_delta(base), None

    def change_flops(self, rows: int, length: int) -> float:
        """FLOPs of x Aᵀ and (x Aᵀ) B."""
        return self.config.flops(self.shape.base, rows, length)

    def static_delta(self, base: BaseLM) -> LoraDelta:
        """The delta, with one row."""
        factors = {
            str(target): (self.a[target].unsqueeze(0), self.b[target].unsqueeze(0)) for target in self.config.targets
        }
        return LoraDelta(factors, scale=self.config.scale, form=self.config.lora_apply)
