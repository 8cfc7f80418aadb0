"""Ways to make rollouts of a puzzle differ: random initial latents, or noise on the latents before every ACT step.

N puzzles of T tokens, R rows of a batch (rollouts of puzzles), S positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.recursive_reasoning.noise import content_keys, keyed_normal, keyed_trunc_normal, spread_keys

Vary = Callable[[int, int, Tensor], Tensor]
"""(ACT step, index of the latent, latent [R, S, D]) -> perturbed latent."""


def rollout_keys(inputs: Tensor, rollouts: int, seed: int) -> Tensor:
    """Random keys [rollouts * N] for rollouts of puzzles [N, T], ordered by rollout.

    A key depends on the seed, the content of the puzzle and the index of the rollout, not on the batch, the rank or the
    number of rollouts.
    """
    return spread_keys(content_keys(inputs) ^ seed, rollouts).view(len(inputs), rollouts).T.flatten()


def random_start(keys: Tensor, plain: Tensor) -> Vary:
    """Initial latents from TruncN(0, 1), drawn by `keys` [R]; rows marked `plain` [R] keep their own."""

    def vary(step: int, index: int, latent: Tensor) -> Tensor:
        if step:
            return latent
        start = keyed_trunc_normal(keys, index, latent.shape[1:]).to(latent)
        return torch.where(plain[:, None, None], latent, start)

    return vary


def step_noise(keys: Tensor, plain: Tensor, sigma: float) -> Vary:
    """z <- z + sigma * eps before every step, eps standard normal by `keys` [R]; rows marked `plain` [R] have none."""

    def vary(step: int, index: int, latent: Tensor) -> Tensor:
        noise = keyed_normal(keys + step, index, latent.shape[1:]).to(latent)
        return torch.where(plain[:, None, None], latent, latent + sigma * noise)

    return vary
