"""Sample from a masked language model: fill in MASK tokens over several steps, the most confident of each row first.

    N masked tokens of a row, S steps:  after step i at most floor(N cos(pi i / 2S)) are left     (schedule=cosine)
                                                          floor(N (1 - i / S))                    (schedule=linear)

As in LLaDA's low-confidence remasking (arXiv 2502.09992). Each row has its own schedule and random numbers, so its text
does not depend on the other rows of the batch. An autoregressive model fills in one token per step, from left to right.
The deltas of an adapter may be reused for several steps.
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
"""Below it, decoding is greedy."""
Predict = Callable[[Tensor, Tensor, bool], Tensor]
"""(inputs [B, T] with MASK and PAD, real bool [B, T], whether to recompute deltas) -> logits [B, T, V], -inf for tokens
that may not be emitted. The first evaluation of a text must compute deltas."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings; stored with every result that depends on them."""

    steps: int = 10
    """Steps per block: each is one evaluation of the model."""
    temperature: float = 0.0
    """0: the most likely token."""
    block_length: int | None = None
    """Fill in blocks of this many masked tokens, from left to right; None: all at once."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How many tokens stay masked after each step."""
    feedback_every: int = 1
    """Steps for which an adapter's deltas are reused; 1: each step computes its own."""
    seed: int = 0
    """Seed of the random draws."""

    def left(self, count: int, step: int) -> int:
        """How many of `count` masked tokens stay masked after `step` (1-based) of a block."""
        if self.schedule == "linear" or step >= self.steps:
            return count * max(0, self.steps - step) // self.steps
        return math.floor(count * math.cos(math.pi / 2 * step / self.steps))


@dataclass(frozen=True)
class Filled:
    """The result of `fill`."""

    tokens: Tensor
    """[B, T]"""
    counts: list[list[int]]
    """Tokens that each evaluation of the model filled in, per row."""
    periods: list[int]
    """Index of the deltas that each evaluation used: those with the same index share them."""

    @property
    def evaluations(self) -> int:
        """Evaluations of the model: one forward pass each for a base, several for an adapter, see `base_passes`."""
        return len(self.counts)

    @property
    def renewals(self) -> int:
        """Evaluations in which an adapter computed new deltas."""
        return len(set(self.periods))

    def row(self, number: int) -> Filled:
        """One row with only the evaluations that filled in some of its tokens: those it would have had alone."""
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
    """Replace every MASK in tokens int64 [B, T], padded on the right; other tokens stay.

    `numbers`: one key per row for its random draws (default: 0, 1, ...).
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
            # counted in steps, not evaluations: steps that fill in nothing are skipped
            period = (number * steps + step - 1) // sampling.feedback_every
            logits = predict(tokens, real, period not in periods[-1:]).float()
            if causal:  # a token is predicted at the position before it
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
    """A mask [B, T] for each block: the first `length` masked positions of every row, the next, and so on."""
    if length is None:
        return [unknown]
    place = unknown.cumsum(-1) - 1
    count = -(-int(unknown.sum(-1).max()) // length) if unknown.numel() else 0
    return [unknown & (place // length == number) for number in range(count)]


def _candidates(logits: Tensor, sampling: Sampling, keys: Sequence[int], step: str) -> tuple[Tensor, Tensor]:
    """(a token for each position [B, T], drawn with the Gumbel trick; its probability at temperature 1)."""
    scores = logits
    if sampling.temperature >= LEAST_TEMPERATURE:
        draws = [_uniform(logits.shape[1:], sampling.seed, f"{key}/{step}") for key in keys]
        gumbel = -torch.log(-torch.log(torch.stack(draws)))
        scores = logits.double().cpu() / sampling.temperature + gumbel
    chosen = scores.argmax(-1).to(logits.device)
    return chosen, logits.softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def _uniform(size: Sequence[int], seed: int, key: str) -> Tensor:
    """Float64 [T, V] in (0, 1), drawn position by position, so that padding does not change earlier ones."""
    draws = torch.rand(*size, generator=keyed_generator(seed, f"feedback/fill/{key}"), dtype=torch.float64)
    return draws.clamp(1e-300, 1 - 1e-16)


def predictor(model: Any, base: Any | None = None) -> Predict:
    """A function that returns the logits of a base, or of the last pass of an adapter of `base`; both must be in
    evaluation mode.

    Without recomputing deltas, an evaluation is one pass of the base with the previous deltas.
    """
    cache: list[Any] = []

    def predict(inputs: Tensor, real: Tensor, recompute: bool = True) -> Tensor:
        if base is None:
            return model(inputs, real).logits()  # type: ignore[no-any-return]
        if not recompute:
            return base(inputs, real, cache[-1]).logits()  # type: ignore[no-any-return]
        # A causal base has never seen MASK; its adapter only reads known tokens, as in training.
        readable = real & (inputs != base.shape.mask_id) if base.config.causal else real
        output, delta = model.adapted(base, unscored_batch(inputs, real, readable))
        cache[:] = [delta]
        return output.logits()  # type: ignore[no-any-return]

    return predict


def base_passes(filled: Filled, model: Any, base: Any | None = None) -> int:
    """Forward passes of the base for a filled text: one for an evaluation with reused deltas, all of the adapter's for
    one that computes them."""
    return filled.evaluations + (0 if base is None else filled.renewals * (model.base_passes - 1))


def unscored_batch(inputs: Tensor, real: Tensor, readable: Tensor) -> Batch:
    """A batch without scored positions, for an adapter that only reads it."""
    ones = torch.ones(len(inputs), device=inputs.device)
    return Batch(inputs, torch.full_like(inputs, -100), real, readable, ones, real.sum(-1).float())
