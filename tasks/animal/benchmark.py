"""How long the gradient of Σ log-probability of a batch of completions takes, in three ways that agree.

    generation   back through every step of the generation, its cache included: what the published script does
    dense        one pass over prompt and completion of every row
    shared       one pass, the prompt read once for all rows: what train_animal.py does

    python -m tasks.animal.benchmark                       # a Llama of 4 layers with random weights, one thread

Times are CPU seconds of this process, so that other processes count little; the least of all turns counts.
B rows, T tokens of a completion, P tokens of the prompt.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.errors import UsageError
from models.animal.adapter import INSTALL
from models.animal.language_model import cache_name, log_probabilities, score

WORDS = 512


def by_generation(model: Any, prompt: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [B, T], one token at a time with a cache that gradients flow through."""
    name = cache_name(model)
    output = model(prompt.expand(len(ids), -1), use_cache=True)
    columns = [log_probabilities(output.logits[:, -1], ids[:, 0])]
    for step in range(1, ids.shape[1]):
        output = model(ids[:, step - 1 : step], use_cache=True, **{name: getattr(output, name)})
        columns.append(log_probabilities(output.logits[:, -1], ids[:, step]))
    return torch.stack(columns, 1)


def by_rows(model: Any, prompt: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [B, T], every row with its own prompt."""
    whole = torch.cat((prompt.expand(len(ids), -1), ids), 1)
    return log_probabilities(model(whole, use_cache=False).logits[:, len(prompt) - 1 : -1], ids)


WAYS = {"generation": by_generation, "dense": by_rows, "shared": score}


def measure(model: Any, prompt: Tensor, ids: Tensor, turns: int) -> dict[str, tuple[float, list[Tensor]]]:
    """Way -> (CPU seconds of forward and backward, gradients of the trained parameters)."""
    trained = [param for param in model.parameters() if param.requires_grad]
    measured: dict[str, tuple[float, list[Tensor]]] = {}
    for _ in range(turns):
        for way, function in WAYS.items():
            began = time.process_time()
            gradients = list(torch.autograd.grad(function(model, prompt, ids).sum(), trained))
            seconds = time.process_time() - began
            measured[way] = (min(seconds, measured[way][0] if way in measured else seconds), gradients)
    return measured


def random_llama(layers: int, width: int) -> Any:
    """A Llama with random weights, of which the attention matrices are trained. Raises: UsageError: no transformers."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise UsageError(f"the benchmark needs transformers: {INSTALL}") from None
    heads = max(1, width // 32)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=WORDS,
        )
    ).eval()
    for name, param in model.named_parameters():
        param.requires_grad_(".self_attn." in name)
    return model


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m tasks.animal.benchmark", description=(__doc__ or "").split("\n")[0])
    for name, default, what in (
        ("layers", 4, "blocks of the model"),
        ("width", 128, "its width"),
        ("rows", 16, "completions"),
        ("prompt", 64, "tokens of the prompt"),
        ("length", 24, "tokens of a completion"),
        ("turns", 3, "turns of which the best counts"),
    ):
        made.add_argument(f"--{name}", type=int, default=default, help=f"{what}; default: {default}")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Measure and print; way -> CPU seconds."""
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    model = random_llama(args.layers, args.width)
    random = torch.Generator().manual_seed(1)
    prompt = torch.randint(WORDS, (args.prompt,), generator=random)
    ids = torch.randint(WORDS, (args.rows, args.length), generator=random)
    measured = measure(model, prompt, ids, args.turns)
    slowest, reference = measured["generation"]
    for way, (seconds, gradients) in measured.items():
        pairs = zip(gradients, reference, strict=True)
        apart = max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
        print(f"{way:<12}{seconds:8.3f} s   {slowest / seconds:5.1f} times as fast   gradients differ by {apart:.0e}")
    return {way: seconds for way, (seconds, _) in measured.items()}


if __name__ == "__main__":
    main()
