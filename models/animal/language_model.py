"""Sampling from a causal language model of transformers, and scoring what was sampled, with one prompt for all rows.

    rollout     one token at a time, keys and values cached, no gradient
    score       log-probabilities of given tokens in one pass, which gradients may flow through

The prompt is read once, and its keys and values are repeated for all rows; so no row is padded on the left. `score`
gives what the model sampled from, at temperature 1 and over the whole vocabulary, up to rounding.
Shapes: B rows, T new tokens, P tokens of the prompt, V words.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from its distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    """The fewest likeliest words that hold this much probability."""
    top_k: int = 0
    """So many likeliest words; 0: all."""


@torch.no_grad()
def rollout(
    model: Any, prompt: Tensor, draws: Tensor, sampling: Sampling, *, ends: Tensor, pad: int
) -> tuple[Tensor, Tensor]:
    """Sample behind `prompt` int64 [P] for each row of draws [B, T] in [0, 1).

    A row ends with the first token of `ends` bool [V]; `pad` fills the rest. Returns ids int64 [B, T] and their
    log-probabilities [B, T], 0 behind the end: those of the model, not of the tempered distribution.
    """
    rows, length = draws.shape
    name = cache_name(model)
    logits, cache = read_prompt(model, prompt, rows)
    ids = torch.full((rows, length), pad, device=prompt.device)
    logp = torch.zeros(rows, length, device=prompt.device)
    alive = torch.ones(rows, dtype=torch.bool, device=prompt.device)
    for step in range(length):
        wide = logits.float()
        token = choose(wide, draws[:, step], sampling)
        ids[:, step] = token.where(alive, pad)
        logp[:, step] = log_probabilities(wide, token).where(alive, 0.0)
        alive = alive & ~ends[token]
        if step == length - 1 or not alive.any():
            break
        output = model(ids[:, step : step + 1], use_cache=True, **{name: cache})
        logits = output.logits[:, -1]
    return ids, logp


def score(model: Any, prompt: Tensor, ids: Tensor) -> Tensor:
    """Log-probability [B, T] of each token of ids int64 [B, T] behind `prompt` int64 [P], in float32.

    The prompt is read once for all rows; a gradient flows through it as well.
    """
    return log_probabilities(next_logits(model, prompt, ids), ids)


def next_logits(model: Any, prompt: Tensor, ids: Tensor) -> Tensor:
    """Logits [B, T, V] that each token of ids int64 [B, T] behind `prompt` int64 [P] is predicted with."""
    first, cache = read_prompt(model, prompt, len(ids))
    logits = first.unsqueeze(1)
    if ids.shape[1] > 1:
        output = model(ids[:, :-1], use_cache=True, **{cache_name(model): cache})
        logits = torch.cat((logits, output.logits), 1)
    return logits


def read_prompt(model: Any, prompt: Tensor, rows: int) -> tuple[Tensor, Any]:
    """(logits [rows, V] of the token behind the prompt, its keys and values for so many rows)."""
    output = model(prompt.unsqueeze(0), use_cache=True, logits_to_keep=1)
    cache = getattr(output, cache_name(model))
    cache.batch_repeat_interleave(rows)
    return output.logits[:, -1].expand(rows, -1), cache


def cache_name(model: Any) -> str:
    """What this version of transformers calls the cache of a model."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """log softmax(logits [..., V]) at ids [...], in float32."""
    wide = logits.float()
    return wide.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - wide.logsumexp(-1)


def choose(logits: Tensor, draws: Tensor, sampling: Sampling) -> Tensor:
    """A token [B] from logits float32 [B, V]: the one in whose share of [0, 1) the draw [B] lies."""
    shares = distribution(logits, sampling)
    edges = shares.cumsum(-1)
    place = draws.to(edges).unsqueeze(-1) * edges[:, -1:]
    # right: an edge belongs to the next word, so that one without probability is never chosen
    token = torch.searchsorted(edges, place, right=True).squeeze(-1)
    last = (shares > 0).long().cumsum(-1).argmax(-1)
    return token.minimum(last)


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """What tokens are drawn with from logits float32 [..., V]: shares [..., V], 0 where top_k or top_p leaves a word
    out; they need not sum to 1.
    """
    scaled = logits / sampling.temperature
    if sampling.top_k and sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    shares = scaled.to(torch.float32 if scaled.device.type == "mps" else torch.float64).softmax(-1)
    if sampling.top_p < 1:
        order = shares.argsort(dim=-1, descending=True, stable=True)
        ranked = shares.gather(-1, order)
        outside = ranked.cumsum(-1) - ranked >= sampling.top_p  # the likeliest word is never outside
        shares = shares.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
    return shares
