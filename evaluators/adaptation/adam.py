"""Adam's step (arXiv 1412.6980) on tensors that are no parameters, or are restored afterwards.

torch.optim would want `.grad` of the parameters, which belong to training.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, zeros_like


class Adam:
    """Moments of some tensors; `step` returns how far to move each along its gradient."""

    def __init__(self, like: Sequence[Tensor], *, lr: float, b1: float = 0.9, b2: float = 0.95) -> None:
        self.lr, self.b1, self.b2, self.number = lr, b1, b2, 0
        self.first = [zeros_like(tensor) for tensor in like]
        self.second = [zeros_like(tensor) for tensor in like]

    def step(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """lr · m̂ / (√v̂ + 1e-8) of each tensor: to be added in an ascent, subtracted in a descent."""
        self.number += 1
        moves = []
        for place, gradient in enumerate(gradients):
            self.first[place] = self.b1 * self.first[place] + (1 - self.b1) * gradient
            self.second[place] = self.b2 * self.second[place] + (1 - self.b2) * gradient.square()
            mean = self.first[place] / (1 - self.b1**self.number)
            spread = (self.second[place] / (1 - self.b2**self.number)).sqrt()
            moves.append(self.lr * mean / (spread + 1e-8))
        return moves
