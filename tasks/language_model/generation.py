"""Text from a language model: one token after another, over the model's cache of keys and values.

Shapes: B samples, K streams, V words, n tokens made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.distributed import keyed_generator
from engine.task import UsageError
from models.language_models.gpt import GPT
from reports.cost.batch_size import usual_limit

LEAST_TEMPERATURE = 1e-6
"""Below it logits over the temperature overflow, and the likeliest token is certain."""
SCORES = 4
"""Copies of the next token's scores that are made at once: filtered, as probabilities, drawn from."""
MOST_TOKENS = 1_000_000
"""Of one sample: a longer one is a slip."""


def filtered(logits: Tensor, *, top_k: int | None, min_p: float | None) -> Tensor:
    """Logits [B, V], -inf outside the `top_k` likeliest or below min_p times the likeliest's probability."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = torch.topk(logits, top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if min_p:
        highest = logits.max(dim=-1, keepdim=True).values
        logits = logits.masked_fill(logits < highest + torch.log(torch.tensor(min_p)), -torch.inf)
    return logits


def until(row: Tensor, stop: int | None) -> Tensor:
    """A sample [n], or [K, n], up to its first token `stop`, that one included: the rest belongs to another text."""
    ends = torch.nonzero(row.reshape(-1, row.shape[-1])[0] == stop) if stop is not None else row.new_zeros(0)
    return row[..., : int(ends[0]) + 1] if len(ends) else row


def check_room(model: GPT, samples: int, count: int) -> None:
    """Raises UsageError for more than MOST_TOKENS, or where keys, values and scores exceed the memory that is free."""
    if count > MOST_TOKENS:
        raise UsageError(f"samples of {count} tokens: expected at most {MOST_TOKENS:,}")
    config, parameter = model.config, next(model.parameters())
    width = config.kv_heads * (config.n_embd // config.n_head)
    size = 2 * config.n_layer * samples * config.block_size * width * parameter.element_size()
    scores = SCORES * 4 * samples * max(model.shape.vocab_sizes)  # float32, on the CPU
    room = usual_limit()
    if parameter.device.type == "cuda":
        free = torch.cuda.mem_get_info(parameter.device)[0]
        room, size, scores = (free, size, 0) if size > free else (room, scores, 0)
    if size + scores > room:
        raise UsageError(
            f"{samples:,} samples at once need {size + scores >> 20:,} MiB, {room >> 20:,} are free: lower num_samples"
        )


@torch.no_grad()
def generate(
    model: GPT,
    prompt: Tensor,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    min_p: float | None = None,
    seed: int = 0,
    purpose: str = "sample",
    stream: int | None = None,
    stop: int | None = None,
    words: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Tensor:
    """`count` tokens after `prompt` (int [B, T], or [B, K, T] for K streams): int64 [B, n], or [B, K, n].

    Numbers are keyed by (seed, purpose), one generator for the whole call, so the same call gives the same text on
    every device. temperature 0: the most likely token. It ends early when every sample has met the token `stop` (of
    the first stream, where there are several): `until` gives where each of them ends. Only the first `words` tokens are
    drawn, those of a vocabulary smaller than the model's table. `stopping` is asked after each token, and ends it too.

    Raises: UsageError for longer texts, or more of them at once, than can be made.
    """
    check_room(model, prompt.shape[0], count)
    was_training = model.training
    model.eval()
    generator = keyed_generator(seed, purpose)
    cache, made = model.new_cache(prompt.shape[0]), []
    ended = torch.zeros(prompt.shape[0], dtype=torch.bool)
    piece = prompt
    for _ in range(count):
        logits = [values[:, :words].float().cpu() for values in model.step(piece, cache, stream=stream)]
        chosen = [_choose(values, temperature, top_k, min_p, generator) for values in logits]
        token = torch.stack(chosen, dim=1) if prompt.dim() == 3 else chosen[0]
        made.append(token)
        if stopping():
            break
        if stop is not None:
            ended |= (token if prompt.dim() == 2 else token[:, 0]) == stop
            if bool(ended.all()):
                break
        piece = token.unsqueeze(-1).to(prompt.device)
    model.train(was_training)
    return torch.stack(made, dim=-1)


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, min_p: float | None, generator: torch.Generator
) -> Tensor:
    if temperature < LEAST_TEMPERATURE:
        return logits.argmax(dim=-1)
    weights = filtered(logits / temperature, top_k=top_k, min_p=min_p).softmax(dim=-1)
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)
