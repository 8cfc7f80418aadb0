"""What makes rollouts of one puzzle differ: another start of the latents, or noise on them at every ACT step.

N puzzles of T tokens, R rows of a batch (rollouts of puzzles), S positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.recursive_reasoning.noise import content_keys, keyed_normal, keyed_trunc_normal, spread_keys

Vary = Callable[[int, int, Tensor], Tensor]
"""(ACT step, number of the latent among the model's, latent [R, S, D]) -> the latent that the step begins with."""


def rollout_keys(inputs: Tensor, rollouts: int, seed: int) -> Tensor:
    """Keys [rollouts * N] of rollouts of puzzles [N, T], rollout by rollout.

    The seed, the puzzle's content and the rollout's number decide: not the batch, the rank or how many rollouts.
    """
    return spread_keys(content_keys(inputs) ^ seed, rollouts).view(len(inputs), rollouts).T.flatten()


def random_start(keys: Tensor, plain: Tensor) -> Vary:
    """Latents begin as TruncN(0, 1), drawn by the `keys` [R] of the rows; `plain` [R] rows keep their start."""

    def vary(step: int, place: int, latent: Tensor) -> Tensor:
        if step:
            return latent
        drawn = keyed_trunc_normal(keys, place, latent.shape[1:]).to(latent)
        return torch.where(plain[:, None, None], latent, drawn)

    return vary


def step_noise(keys: Tensor, plain: Tensor, sigma: float) -> Vary:
    """z <- z + sigma * eps before every step, eps standard normal by `keys` [R]; `plain` [R] rows stay without."""

    def vary(step: int, place: int, latent: Tensor) -> Tensor:
        noise = keyed_normal(keys + step, place, latent.shape[1:]).to(latent)
        return torch.where(plain[:, None, None], latent, latent + sigma * noise)

    return vary
