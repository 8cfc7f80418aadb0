"""Masking noise: stratified times for training, a fixed grid of exact counts for evaluation.

Random numbers are keyed by (seed, purpose, step) or by a row's number in its split, and drawn for block_size positions,
so they do not depend on ranks, micro-batches or padding.
Shapes: B rows of the global batch, b rows of the tensor, T positions of the batch, K = block_size positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.distributed import keyed_generator, keyed_numpy
from models.feedback.batch import Batch
from models.feedback.config import TextShape

IGNORE = -100
LEVELS = tuple(level / 16 for level in range(1, 17))


@dataclass(frozen=True)
class Noise:
    """rate [b] float32: share of tokens to mask; places [b, K] float32 in [0, 1): positions below the rate are masked.

    exact: mask the ceil(rate · length) positions with the smallest numbers instead.
    """

    rate: Tensor
    places: Tensor
    exact: bool = False

    def rows(self, low: int, high: int) -> Noise:
        """Rows low .. high - 1."""
        return Noise(self.rate[low:high], self.places[low:high], self.exact)


def training_noise(seed: int, step: int, *, rows: int, block_size: int, eps: float, stratified: bool = True) -> Noise:
    """Noise of the global batch of `rows` rows at `step`.

    Stratified times are t_i = ((u + i) / B) mod 1 in random order (MDLM, arXiv 2406.07524): one in each of B intervals
    of [0, 1), which lowers the variance of the loss; else they are independent. p = (1 - eps) · t + eps.
    """
    generator = keyed_generator(seed, "feedback/noise", step)
    if stratified:
        times = (torch.rand(1, generator=generator) + torch.arange(rows)) / rows % 1.0
        times = times[torch.randperm(rows, generator=generator)]
    else:
        times = torch.rand(rows, generator=generator)
    return Noise((1 - eps) * times + eps, torch.rand(rows, block_size, generator=generator))


def evaluation_noise(
    seed: int, numbers: Sequence[int], *, block_size: int, eps: float, levels: Sequence[float] = LEVELS, repeat: int = 0
) -> Noise:
    """Noise of a split's rows with these `numbers`: the same in every evaluation of every model.

    Row i has the time levels[(i + repeat) mod n] of n, each in (0, 1], and the exact number of masked tokens for it.
    """
    times = [levels[(int(number) + repeat) % len(levels)] for number in numbers]
    places = [
        keyed_numpy(seed, f"feedback/evaluation/{repeat}", int(number)).random(block_size, np.float32)
        for number in numbers
    ]
    stacked = np.stack(places) if places else np.zeros((0, block_size), np.float32)
    rate = (1 - eps) * torch.tensor(times, dtype=torch.float32) + eps
    return Noise(rate, torch.from_numpy(stacked), exact=True)


def hide(tokens: Tensor, shape: TextShape, noise: Noise) -> Batch:
    """Mask tokens int64 [b, T], padded on the right, for a masked-diffusion model; the batch is on the tokens' device.

    With exact counts the weight is length / masked, so that the mean over all positions of a row is unbiased.
    """
    tokens = tokens.long()
    real = tokens != shape.pad_id
    rate = noise.rate.to(tokens.device)
    places = noise.places[:, : tokens.shape[1]].to(tokens.device)
    lengths = real.sum(-1)
    if noise.exact:
        counts = torch.ceil(rate * lengths).long()
        order = places.masked_fill(~real, 2.0).argsort(stable=True).argsort()  # rank of each position in its row
        hidden = real & (order < counts[:, None])
        rate = counts.clamp(min=1) / lengths.clamp(min=1)
    else:
        hidden = real & (places < rate[:, None])
    return Batch(
        inputs=tokens.masked_fill(hidden, shape.mask_id),
        labels=tokens.masked_fill(~hidden, IGNORE),
        real=real,
        readable=real,
        rate=rate.float(),
        count=lengths.float(),
    )


def next_tokens(tokens: Tensor, shape: TextShape, context_fraction: float = 0.0) -> Batch:
    """The batch of an autoregressive model from tokens int64 [b, T], padded on the right.

    A hypernetwork may read the first ceil(context_fraction · length) tokens, which are not scored; 0: all but the first
    token are scored.
    """
    tokens = tokens.long()
    real = tokens != shape.pad_id
    place = torch.arange(tokens.shape[1], device=tokens.device)
    context = torch.ceil(context_fraction * real.sum(-1)).long().clamp(min=1)[:, None]
    after = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], shape.pad_id)), 1)
    scored = (after != shape.pad_id) & (place + 1 >= context)
    return Batch(
        inputs=tokens,
        labels=after.masked_fill(~scored, IGNORE),
        real=real,
        readable=real & (place < context),
        rate=torch.ones(len(tokens), device=tokens.device),
        count=scored.sum(-1).float(),
    )
