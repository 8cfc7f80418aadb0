"""Functional Adam (arXiv 1412.6980) for tensors that are not parameters, or are restored afterwards.

torch.optim would use `.grad` of the parameters, which belongs to training.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, zeros_like


class Adam:
    """Adam moments of a list of tensors; `step` returns their updates."""

    def __init__(self, like: Sequence[Tensor], *, lr: float, b1: float = 0.9, b2: float = 0.95) -> None:
        self.lr, self.b1, self.b2, self.number = lr, b1, b2, 0
        self.first = [zeros_like(tensor) for tensor in like]
        self.second = [zeros_like(tensor) for tensor in like]

    def step(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """lr · m̂ / (√v̂ + 1e-8) for each tensor: add it for ascent, subtract it for descent."""
        self.number += 1
        updates = []
        for i, gradient in enumerate(gradients):
            self.first[i] = self.b1 * self.first[i] + (1 - self.b1) * gradient
            self.second[i] = self.b2 * self.second[i] + (1 - self.b2) * gradient.square()
            mean = self.first[i] / (1 - self.b1**self.number)
            rms = (self.second[i] / (1 - self.b2**self.number)).sqrt()
            updates.append(self.lr * mean / (rms + 1e-8))
        return updates
