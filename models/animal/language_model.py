"""Sample from a causal language model of transformers and score the samples; all rows share one prompt.

    rollout     one token at a time with a KV cache, no gradient
    score       log-probabilities of given tokens in one pass, with gradient if enabled

The prompt is read once and its keys and values are repeated for all rows, so there is no left padding. `score` returns
the log-probabilities at temperature 1 over the whole vocabulary, equal to those of `rollout` up to rounding.
Shapes: B rows, T new tokens, P prompt tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are sampled."""

    temperature: float = 1.0
    top_p: float = 1.0
    """Nucleus sampling: keep the fewest most likely tokens with at least this total probability."""
    top_k: int = 0
    """Keep this many most likely tokens; 0: all."""


@torch.no_grad()
def rollout(
    model: Any, prompt: Tensor, draws: Tensor, sampling: Sampling, *, ends: Tensor, pad: int
) -> tuple[Tensor, Tensor]:
    """Sample a completion of `prompt` int64 [P] for each row of the uniform numbers `draws` [B, T] in [0, 1).

    A row ends with the first token in `ends` bool [V] and is filled with `pad`. Returns ids int64 [B, T] and their
    log-probabilities [B, T] under the model (not the tempered distribution), 0 after the end.
    """
    rows, length = draws.shape
    name = cache_name(model)
    logits, cache = prefill(model, prompt, rows)
    ids = torch.full((rows, length), pad, device=prompt.device)
    logp = torch.zeros(rows, length, device=prompt.device)
    alive = torch.ones(rows, dtype=torch.bool, device=prompt.device)
    for step in range(length):
        wide = logits.float()
        token = sample_tokens(wide, draws[:, step], sampling)
        ids[:, step] = token.where(alive, pad)
        logp[:, step] = log_probabilities(wide, token).where(alive, 0.0)
        alive = alive & ~ends[token]
        if step == length - 1 or not alive.any():
            break
        output = model(ids[:, step : step + 1], use_cache=True, **{name: cache})
        logits = output.logits[:, -1]
    return ids, logp


def score(model: Any, prompt: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [B, T] of ids int64 [B, T] after `prompt` int64 [P], in float32.

    The prompt is read once for all rows; gradients flow through it too.
    """
    return log_probabilities(next_logits(model, prompt, ids), ids)


def next_logits(model: Any, prompt: Tensor, ids: Tensor) -> Tensor:
    """Logits [B, T, V] that predict each token of ids int64 [B, T] after `prompt` int64 [P]."""
    first, cache = prefill(model, prompt, len(ids))
    logits = first.unsqueeze(1)
    if ids.shape[1] > 1:
        output = model(ids[:, :-1], use_cache=True, **{cache_name(model): cache})
        logits = torch.cat((logits, output.logits), 1)
    return logits


def prefill(model: Any, prompt: Tensor, rows: int) -> tuple[Tensor, Any]:
    """(logits [rows, V] of the first token after the prompt, KV cache of the prompt repeated for `rows` rows)."""
    output = model(prompt.unsqueeze(0), use_cache=True, logits_to_keep=1)
    cache = getattr(output, cache_name(model))
    cache.batch_repeat_interleave(rows)
    return output.logits[:, -1].expand(rows, -1), cache


def cache_name(model: Any) -> str:
    """Name of the cache argument in this version of transformers."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """log softmax(logits [..., V]) at ids [...], in float32."""
    wide = logits.float()
    return wide.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - wide.logsumexp(-1)


def sample_tokens(logits: Tensor, draws: Tensor, sampling: Sampling) -> Tensor:
    """Sample tokens [B] from logits float32 [B, V] by inverting the cumulative distribution at draws [B] in [0, 1)."""
    weights = sampling_weights(logits, sampling)
    cumulative = weights.cumsum(-1)
    point = draws.to(cumulative).unsqueeze(-1) * cumulative[:, -1:]
    # right=True: a boundary belongs to the next token, so tokens of probability 0 are never chosen
    token = torch.searchsorted(cumulative, point, right=True).squeeze(-1)
    last = (weights > 0).long().cumsum(-1).argmax(-1)
    return token.minimum(last)


def sampling_weights(logits: Tensor, sampling: Sampling) -> Tensor:
    """Unnormalised sampling weights [..., V] from logits float32 [..., V]; 0 for tokens excluded by top_k or top_p."""
    scaled = logits / sampling.temperature
    if sampling.top_k and sampling.top_k < scaled.shape[-1]:
        smallest = scaled.topk(sampling.top_k).values[..., -1:]
        scaled = scaled.masked_fill(scaled < smallest, float("-inf"))
    weights = scaled.to(torch.float32 if scaled.device.type == "mps" else torch.float64).softmax(-1)
    if sampling.top_p < 1:
        order = weights.argsort(dim=-1, descending=True, stable=True)
        ranked = weights.gather(-1, order)
        excluded = ranked.cumsum(-1) - ranked >= sampling.top_p  # never the most likely token
        weights = weights.masked_fill(torch.zeros_like(excluded).scatter(-1, order, excluded), 0.0)
    return weights
