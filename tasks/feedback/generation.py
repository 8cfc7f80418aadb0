"""Text from a model of masked text: unknown tokens are filled in over several steps, the surest ones of each row first.

    N unknown tokens of a row, S steps:  after step i at most floor(N cos(pi i / 2S)) are left     (schedule=cosine)
                                                           floor(N (1 - i / S))                    (schedule=linear)

In the manner of LLaDA's low-confidence remasking (arXiv 2502.09992). Each row follows its own schedule and draws its
own random numbers, so a row's text does not depend on the rows beside it. An autoregressive model fills one token a
step, from left to right. The deltas of an adapter may be kept for several steps.
Shapes: B rows, T positions, V rows of the token table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from engine.distributed import keyed_generator
from models.feedback.batch import Batch
from models.feedback.config import TextShape

LEAST_TEMPERATURE = 1e-6
"""Below it the likeliest token is taken."""
Predict = Callable[[Tensor, Tensor, bool], Tensor]
"""(inputs [B, T] with MASK and PAD, real bool [B, T], whether deltas are made anew) -> logits [B, T, V], -inf where no
token may be emitted. The first evaluation of a text makes them."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How text is filled in; stored with every figure that is made from it."""

    steps: int = 10
    """Steps of each block, and so evaluations of the model."""
    temperature: float = 0.0
    """0: the most likely token."""
    block_length: int | None = None
    """Blocks of so many unknown tokens are filled one after the other, from the left; None: all at once."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How many tokens are left after each step."""
    feedback_every: int = 1
    """Steps for which the deltas of an adapter are kept; 1: each makes its own."""
    seed: int = 0
    """Of the random draws."""

    def left(self, count: int, step: int) -> int:
        """Unknown tokens left of `count` after `step` (from 1) of a block."""
        if self.schedule == "linear" or step >= self.steps:
            return count * max(0, self.steps - step) // self.steps
        return math.floor(count * math.cos(math.pi / 2 * step / self.steps))


@dataclass(frozen=True)
class Filled:
    """What `fill` gives."""

    tokens: Tensor
    """[B, T]"""
    counts: list[list[int]]
    """Tokens that each evaluation of the model fixed, row by row."""
    periods: list[int]
    """With which deltas, by number: evaluations of one number share them."""

    @property
    def evaluations(self) -> int:
        """Of the model: each is a forward pass of a base, and several of an adapted one, see `base_passes`."""
        return len(self.counts)

    @property
    def renewals(self) -> int:
        """Evaluations for which an adapter made its deltas."""
        return len(set(self.periods))

    def row(self, number: int) -> Filled:
        """One row with the evaluations that it took part in, which are those that it would have had alone."""
        own = [place for place, counts in enumerate(self.counts) if counts[number]]
        counts = [[self.counts[place][number]] for place in own]
        return Filled(self.tokens[number : number + 1], counts, [self.periods[place] for place in own])


@torch.no_grad()
def fill(
    predict: Predict,
    tokens: Tensor,
    shape: TextShape,
    sampling: Sampling,
    *,
    numbers: Sequence[int] | None = None,
    causal: bool = False,
) -> Filled:
    """Replace every MASK in tokens int64 [B, T], padded on the right; all else stays as it is.

    `numbers` are the rows' own, which key their random draws (default: 0, 1, ...).
    """
    tokens = tokens.clone()
    real = tokens != shape.pad_id
    keys = list(numbers) if numbers is not None else list(range(len(tokens)))
    steps = 1 if causal else sampling.steps
    counts: list[list[int]] = []
    periods: list[int] = []
    blocks = _blocks(tokens == shape.mask_id, 1 if causal else sampling.block_length)
    for number, block in enumerate(blocks):
        unknown = block.sum(-1).tolist()
        for step in range(1, steps + 1):
            masked = block & (tokens == shape.mask_id)
            left = [0 if causal else sampling.left(count, step) for count in unknown]
            fixing = [max(0, count - keep) for count, keep in zip(masked.sum(-1).tolist(), left, strict=True)]
            if not any(fixing):
                continue
            # By the step, not by the evaluations so far: those that fix nothing of any row are left out.
            period = (number * steps + step - 1) // sampling.feedback_every
            logits = predict(tokens, real, period not in periods[-1:]).float()
            if causal:  # what stands at a place is what the place before it predicts
                logits = torch.cat((logits[:, :1], logits[:, :-1]), 1)
            chosen, confidence = _candidates(logits, sampling, keys, f"{number}/{step}")
            order = confidence.masked_fill(~masked, -1.0).argsort(dim=-1, descending=True, stable=True)
            for row, count in enumerate(fixing):
                places = order[row, :count]
                tokens[row, places] = chosen[row, places]
            counts.append(fixing)
            periods.append(period)
    return Filled(tokens, counts, periods)


def _blocks(unknown: Tensor, length: int | None) -> list[Tensor]:
    """The unknown places [B, T] of each block: of every row its first `length` ones, the next, and so on."""
    if length is None:
        return [unknown]
    place = unknown.cumsum(-1) - 1
    count = -(-int(unknown.sum(-1).max()) // length) if unknown.numel() else 0
    return [unknown & (place // length == number) for number in range(count)]


def _candidates(logits: Tensor, sampling: Sampling, keys: Sequence[int], step: str) -> tuple[Tensor, Tensor]:
    """The token of each place [B, T], drawn by the Gumbel trick, and its probability at temperature 1."""
    scores = logits
    if sampling.temperature >= LEAST_TEMPERATURE:
        draws = [_uniform(logits.shape[1:], sampling.seed, f"{key}/{step}") for key in keys]
        gumbel = -torch.log(-torch.log(torch.stack(draws)))
        scores = logits.double().cpu() / sampling.temperature + gumbel
    chosen = scores.argmax(-1).to(logits.device)
    return chosen, logits.softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def _uniform(size: Sequence[int], seed: int, key: str) -> Tensor:
    """Float64 [T, V] in (0, 1): row by row of positions, so that more padding changes none before it."""
    draws = torch.rand(*size, generator=keyed_generator(seed, f"feedback/fill/{key}"), dtype=torch.float64)
    return draws.clamp(1e-300, 1 - 1e-16)


def predictor(model: Any, base: Any | None = None) -> Predict:
    """The logits of a base, or of the last pass of an adapter of `base`, both in evaluation mode.

    An evaluation that makes no deltas is one pass of the base with those of the evaluation before.
    """
    kept: list[Any] = []

    def predict(inputs: Tensor, real: Tensor, anew: bool = True) -> Tensor:
        if base is None:
            return model(inputs, real).logits()  # type: ignore[no-any-return]
        if not anew:
            return base(inputs, real, kept[-1]).logits()  # type: ignore[no-any-return]
        # A causal base has never seen MASK; its adapter reads what is known, as in training.
        readable = real & (inputs != base.shape.mask_id) if base.config.causal else real
        output, delta = model.adapted(base, unscored(inputs, real, readable))
        kept[:] = [delta]
        return output.logits()  # type: ignore[no-any-return]

    return predict


def base_passes(made: Filled, model: Any, base: Any | None = None) -> int:
    """Forward passes of the base for a filled text: one for an evaluation with kept deltas, all of the adapter's for
    one that makes them."""
    return made.evaluations + (0 if base is None else made.renewals * (model.base_passes - 1))


def unscored(inputs: Tensor, real: Tensor, readable: Tensor) -> Batch:
    """Rows of which nothing is scored, for an adapter that only reads them."""
    ones = torch.ones(len(inputs), device=inputs.device)
    return Batch(inputs, torch.full_like(inputs, -100), real, readable, ones, real.sum(-1).float())
