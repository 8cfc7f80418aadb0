"""Text from a language model: one token after another, over the model's cache of keys and values.

Shapes: B samples, K streams, V words, n tokens made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.distributed import keyed_generator
from models.language_models.gpt import GPT


def filtered(logits: Tensor, *, top_k: int | None, min_p: float | None) -> Tensor:
    """Logits [B, V], -inf outside the `top_k` likeliest or below min_p times the likeliest's probability."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = torch.topk(logits, top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if min_p:
        highest = logits.max(dim=-1, keepdim=True).values
        logits = logits.masked_fill(logits < highest + torch.log(torch.tensor(min_p)), -torch.inf)
    return logits


@torch.no_grad()
def generate(
    model: GPT, prompt: Tensor, count: int, *, temperature: float = 1.0, top_k: int | None = None,
    min_p: float | None = None, seed: int = 0, purpose: str = "sample", stream: int | None = None,
    stop: int | None = None,
) -> Tensor:  # fmt: skip
    """`count` tokens after `prompt` (int [B, T], or [B, K, T] for K streams): int64 [B, n], or [B, K, n].

    Numbers are keyed by (seed, purpose), one generator for the whole call, so the same call gives the same text on
    every device. temperature 0 takes the likeliest token. It ends early when every sample has met the token `stop`.
    """
    was_training = model.training
    model.eval()
    generator = keyed_generator(seed, purpose)
    cache, made = model.new_cache(prompt.shape[0]), []
    ended = torch.zeros(prompt.shape[0], dtype=torch.bool)
    piece = prompt
    for _ in range(count):
        logits = [values.float().cpu() for values in model.step(piece, cache, stream=stream)]
        chosen = [_choose(values, temperature, top_k, min_p, generator) for values in logits]
        token = torch.stack(chosen, dim=1) if prompt.dim() == 3 else chosen[0]
        made.append(token)
        if stop is not None and prompt.dim() == 2:
            ended |= token == stop
            if bool(ended.all()):
                break
        piece = token.unsqueeze(-1).to(prompt.device)
    model.train(was_training)
    return torch.stack(made, dim=-1)


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, min_p: float | None, generator: torch.Generator
) -> Tensor:
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    weights = filtered(logits / temperature, top_k=top_k, min_p=min_p).softmax(dim=-1)
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)
