"""What makes rollouts of one puzzle differ: another start of the latents, or noise on them at every ACT step.

R rows of a batch (rollouts of puzzles), S positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.init import trunc_normal_

Vary = Callable[[int, Tensor], Tensor]
"""(ACT step, from 0; latent [R, S, D]) -> the latent that the step begins with."""


def random_start(generator: torch.Generator, plain: Tensor) -> Vary:
    """Latents begin as TruncN(0, 1), drawn anew for each row, token and channel; `plain` [R] rows keep their start."""

    def vary(step: int, latent: Tensor) -> Tensor:
        if step:
            return latent
        seed = int(torch.randint(1 << 62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):  # trunc_normal_ draws from the global generator
            torch.manual_seed(seed)
            drawn = trunc_normal_(torch.empty(latent.shape), 1.0).to(latent)
        return torch.where(plain[:, None, None], latent, drawn)

    return vary


def step_noise(generator: torch.Generator, plain: Tensor, sigma: float) -> Vary:
    """z <- z + sigma * eps before every step, eps standard normal; `plain` [R] rows stay without."""

    def vary(step: int, latent: Tensor) -> Tensor:
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        return torch.where(plain[:, None, None], latent, latent + sigma * noise)

    return vary
