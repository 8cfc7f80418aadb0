"""Which tokens are hidden: stratified times for training, a fixed grid of exact counts for evaluation.

Every number is keyed by (seed, purpose, step) or by a row's number in its split, and drawn for block_size positions, so
it depends neither on ranks and micro-batches nor on how far a batch is padded.
Shapes: B rows of the global batch, b rows given, T positions of the batch, K = block_size positions.
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
    """rate [b] float32: share of tokens to hide; places [b, K] float32 in [0, 1): those below the rate are hidden.

    exact: the ceil(rate · length) positions of the smallest numbers are hidden instead.
    """

    rate: Tensor
    places: Tensor
    exact: bool = False

    def rows(self, low: int, high: int) -> Noise:
        """Rows low .. high - 1."""
        return Noise(self.rate[low:high], self.places[low:high], self.exact)


def training_noise(seed: int, step: int, *, rows: int, block_size: int, eps: float, stratified: bool = True) -> Noise:
    """Noise of the whole global batch of `rows` rows at `step`.

    Stratified times are t_i = ((u + i) / B) mod 1 in random order (MDLM, arXiv 2406.07524): each B-th of [0, 1) has
    one, which lowers the variance of the loss; else each is drawn by itself. p = (1 - eps) · t + eps.
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
    """Noise of the rows of a split that have these `numbers`: the same in every evaluation of every model.

    Row i has the time levels[(i + repeat) mod n] of n, each in (0, 1], and the exact number of hidden tokens that
    belongs to it.
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
    """tokens int64 [b, T], padded on the right -> the batch of a masked-diffusion model, on the tokens' device.

    With exact counts the weight is length / hidden, so that the mean over all positions of a row is unbiased.
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
    """tokens int64 [b, T], padded on the right -> the batch of an autoregressive model.

    The first ceil(context_fraction · length) tokens may be read by a hypernetwork and are not scored; 0: all but the
    first are scored.
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
