"""Text from a model of masked text: unknown tokens are filled in over several steps, the surest ones of each row first.

    N unknown tokens of a row, S steps:  after step i at most floor(N cos(pi i / 2S)) are left     (schedule=cosine)
                                                           floor(N (1 - i / S))                    (schedule=linear)

In the manner of LLaDA's low-confidence remasking (arXiv 2502.09992). Each row follows its own schedule and draws its
own random numbers, so a row's text does not depend on the rows beside it. An autoregressive model fills one token a
step, from left to right. Shapes: B rows, T positions, V rows of the token table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from engine.distributed import keyed_generator
from models.feedback.batch import Batch
from models.feedback.config import TextShape

LEAST_TEMPERATURE = 1e-6
"""Below it the likeliest token is taken."""
Predict = Callable[[Tensor, Tensor], Tensor]
"""(inputs [B, T] with MASK and PAD, real bool [B, T]) -> logits [B, T, V], -inf where no token may be emitted."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How text is filled in; stored with every figure that is made from it."""

    steps: int = 10
    """Steps of each block, and so evaluations of the model."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    block_length: int | None = None
    """Blocks of so many unknown tokens are filled one after the other, from the left; None: all at once."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How many tokens are left after each step."""
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
    evaluations: int
    """Forward passes of the model."""
    counts: list[list[int]] = field(default_factory=list)
    """Tokens that each step fixed, row by row."""


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
    evaluations, fixed = 0, []
    blocks = _blocks(tokens == shape.mask_id, 1 if causal else sampling.block_length)
    for number, block in enumerate(blocks):
        unknown = block.sum(-1).tolist()
        for step in range(1, (1 if causal else sampling.steps) + 1):
            masked = block & (tokens == shape.mask_id)
            left = [0 if causal else sampling.left(count, step) for count in unknown]
            fixing = [max(0, count - keep) for count, keep in zip(masked.sum(-1).tolist(), left, strict=True)]
            if not any(fixing):
                continue
            logits = predict(tokens, real).float()
            if causal:  # what stands at a place is what the place before it predicts
                logits = torch.cat((logits[:, :1], logits[:, :-1]), 1)
            chosen, confidence = _candidates(logits, sampling, keys, f"{number}/{step}")
            order = confidence.masked_fill(~masked, -1.0).argsort(dim=-1, descending=True, stable=True)
            for row, count in enumerate(fixing):
                places = order[row, :count]
                tokens[row, places] = chosen[row, places]
            evaluations += 1
            fixed.append(fixing)
    return Filled(tokens, evaluations, fixed)


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
    """The logits of a base, or of the last pass of an adapter of `base`, both in evaluation mode."""

    def predict(inputs: Tensor, real: Tensor) -> Tensor:
        if base is None:
            return model(inputs, real).logits()  # type: ignore[no-any-return]
        # A causal base has never seen MASK; its adapter reads what is known, as in training.
        readable = real & (inputs != base.shape.mask_id) if base.config.causal else real
        return model(base, unscored(inputs, real, readable)).final.logits()  # type: ignore[no-any-return]

    return predict


def unscored(inputs: Tensor, real: Tensor, readable: Tensor) -> Batch:
    """Rows of which nothing is scored, for an adapter that only reads them."""
    ones = torch.ones(len(inputs), device=inputs.device)
    return Batch(inputs, torch.full_like(inputs, -100), real, readable, ones, real.sum(-1).float())
