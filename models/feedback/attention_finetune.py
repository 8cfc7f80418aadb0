"""Full fine-tuning of some matrices, a baseline for hypernetworks. L blocks, n and m widths of a target.

The weights are stored as differences to the base, so that weight decay pulls towards the base instead of zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.feedback.adapter import Adapter
from models.feedback.adapter_config import AdapterShape, FineTuneConfig
from models.feedback.base import BaseLM
from models.feedback.batch import BaseOutput, Batch
from models.feedback.config import BaseConfig
from models.feedback.layers import Changes
from models.layers import CastedLinear, cast_linear


@dataclass(frozen=True)
class DenseChange:
    """y = (W + D) x with D [m, n]."""

    difference: Tensor

    def __call__(self, linear: CastedLinear, x: Tensor) -> Tensor:
        return cast_linear(x, linear.weight + self.difference)


@dataclass(frozen=True)
class DenseDelta:
    """Full-rank differences {target: D [L, m, n]}, the same for all rows."""

    weights: Mapping[str, Tensor]

    def check(self, config: BaseConfig, rows: int) -> None:
        """Raises: ValueError with both values if blocks or widths differ from the base."""
        for target, weight in self.weights.items():
            n, m = config.sides(target)
            if tuple(weight.shape) != (config.n_layer, m, n):
                raise ValueError(
                    f"the difference of {target} has shape {tuple(weight.shape)}, the base has {(config.n_layer, m, n)}"
                )

    def layer(self, number: int) -> Changes:
        """The changes of block `number`."""
        return {target: DenseChange(weight[number]) for target, weight in self.weights.items()}

    def detach(self) -> DenseDelta:
        """A detached copy."""
        return DenseDelta({target: weight.detach() for target, weight in self.weights.items()})

    def norms(self, base: Any) -> Tensor:
        """‖D‖_F / ‖W‖_F of each block and target: [1, L, targets]."""
        size = torch.linalg.vector_norm
        ratios = [
            torch.stack([size(part) / size(base.linear(number, target)) for number, part in enumerate(weight)])
            for target, weight in self.weights.items()
        ]
        return torch.stack(ratios, -1).unsqueeze(0)


class AttentionFineTune(Adapter):
    """Trains a difference D [L, m, n] for each target, initially zero."""

    Config: ClassVar = FineTuneConfig

    def __init__(self, config: FineTuneConfig, shape: AdapterShape, **options: Any) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        blocks = shape.base.n_layer
        self.differences = nn.ParameterDict(
            {
                target: nn.Parameter(torch.zeros(blocks, *reversed(shape.base.sides(target))))
                for target in config.targets
            }
        )

    def make_delta(
        self, base: BaseLM, batch: Batch, previous: BaseOutput | None, previous_delta: Any
    ) -> tuple[DenseDelta, Tensor | None]:
        """(the differences, no penalty)."""
        return self.static_delta(base), None

    def change_flops(self, rows: int, length: int) -> float:
        """0: once trained, W + D is one matrix."""
        return 0.0

    def flops(self, rows: int) -> dict[str, float]:
        """As Adapter, plus the gradients of the differences in `train`."""
        base, counted = self.shape.base, super().flops(rows)
        own = 2.0 * rows * base.block_size * self.num_parameters()
        return {**counted, "train": counted["train"] + own}

    def static_delta(self, base: BaseLM) -> DenseDelta:
        """The differences, which depend on no input."""
        return DenseDelta(dict(self.differences))

    def param_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """One group of matrices."""
        return {"matrix": dict(self.named_parameters())}
