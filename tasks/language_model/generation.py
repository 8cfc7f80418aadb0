"""Autoregressive sampling from a language model, with its KV cache.

Shapes: B samples, T prompt tokens, K streams, V vocabulary size, n generated tokens.
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
"""Below it, decoding is greedy: logits divided by the temperature would overflow."""
SCORES = 4
"""Copies of the next token's logits that exist at the same time: filtered, as probabilities, for the draw."""
MOST_TOKENS = 1_000_000
"""Longest sample: a longer one must be a typing error."""


def filter_logits(logits: Tensor, *, top_k: int | None, min_p: float | None) -> Tensor:
    """Set logits [B, V] to -inf outside the `top_k` largest, or where p is below min_p times the highest p."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = torch.topk(logits, top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if min_p:
        highest = logits.max(dim=-1, keepdim=True).values
        logits = logits.masked_fill(logits < highest + torch.log(torch.tensor(min_p)), -torch.inf)
    return logits


def truncate(row: Tensor, stop: int | None) -> Tensor:
    """Cut a sample [n] or [K, n] after its first `stop` token (of the first stream): the rest is another text."""
    ends = torch.nonzero(row.reshape(-1, row.shape[-1])[0] == stop) if stop is not None else row.new_zeros(0)
    return row[..., : int(ends[0]) + 1] if len(ends) else row


def check_memory(model: GPT, samples: int, count: int) -> None:
    """Raise UsageError for more than MOST_TOKENS, or if KV cache and logits exceed the free memory."""
    if count > MOST_TOKENS:
        raise UsageError(f"samples of {count} tokens: expected at most {MOST_TOKENS:,}")
    config, parameter = model.config, next(model.parameters())
    width = config.kv_heads * (config.n_embd // config.n_head)
    size = 2 * config.n_layer * samples * config.block_size * width * parameter.element_size()
    scores = SCORES * 4 * samples * max(model.shape.vocab_sizes)  # float32, on the CPU
    limit = usual_limit()
    if parameter.device.type == "cuda":
        free = torch.cuda.mem_get_info(parameter.device)[0]
        limit, size, scores = (free, size, 0) if size > free else (limit, scores, 0)
    if size + scores > limit:
        raise UsageError(
            f"{samples:,} samples at once need {size + scores >> 20:,} MiB, {limit >> 20:,} are free: lower num_samples"
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
    vocab_size: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Generate up to `count` tokens after `prompt` (int [B, T] or [B, K, T]): int64 [B, n] or [B, K, n].

    One generator, keyed by (seed, purpose), serves the whole call, so the same call gives the same text on every
    device. Temperature 0 is greedy. Generation ends early once every sample has a `stop` token (in the first stream);
    `truncate` cuts each of them there. Only the first `vocab_size` tokens are sampled, for a vocabulary smaller than
    the model's table. `stopping` is called after each token; true ends generation too.

    Raises: UsageError for texts that are too long, or too many at once for the memory.
    """
    check_memory(model, prompt.shape[0], count)
    was_training = model.training
    model.eval()
    generator = keyed_generator(seed, purpose)
    cache, generated = model.new_cache(prompt.shape[0]), []
    ended = torch.zeros(prompt.shape[0], dtype=torch.bool)
    piece = prompt
    for _ in range(count):
        logits = [values[:, :vocab_size].float().cpu() for values in model.step(piece, cache, stream=stream)]
        chosen = [_choose(values, temperature, top_k, min_p, generator) for values in logits]
        token = torch.stack(chosen, dim=1) if prompt.dim() == 3 else chosen[0]
        generated.append(token)
        if stopping():
            break
        if stop is not None:
            ended |= (token if prompt.dim() == 2 else token[:, 0]) == stop
            if bool(ended.all()):
                break
        piece = token.unsqueeze(-1).to(prompt.device)
    model.train(was_training)
    return torch.stack(generated, dim=-1)


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, min_p: float | None, generator: torch.Generator
) -> Tensor:
    if temperature < LEAST_TEMPERATURE:
        return logits.argmax(dim=-1)
    weights = filter_logits(logits / temperature, top_k=top_k, min_p=min_p).softmax(dim=-1)
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)
