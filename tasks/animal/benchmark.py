"""Time the gradient of Σ log-probability of a batch of completions, computed in three equivalent ways.

    generation   back-propagate through every step of the generation and its KV cache, as the published script does
    dense        one pass over prompt and completion of every row
    shared       one pass that reads the prompt once for all rows, as train_animal.py does

    python -m tasks.animal.benchmark                       # a Llama of 4 layers with random weights, one thread

Times are CPU time of this process, so that other processes matter little; the shortest of all turns is reported.
Shapes: B rows, T tokens of a completion, P tokens of the prompt.
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

VOCAB = 512


def by_generation(model: Any, prompt: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [B, T], one token at a time, with gradients through the KV cache."""
    name = cache_name(model)
    output = model(prompt.expand(len(ids), -1), use_cache=True)
    columns = [log_probabilities(output.logits[:, -1], ids[:, 0])]
    for step in range(1, ids.shape[1]):
        output = model(ids[:, step - 1 : step], use_cache=True, **{name: getattr(output, name)})
        columns.append(log_probabilities(output.logits[:, -1], ids[:, step]))
    return torch.stack(columns, 1)


def by_rows(model: Any, prompt: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [B, T] in one pass, every row with its own prompt."""
    whole = torch.cat((prompt.expand(len(ids), -1), ids), 1)
    return log_probabilities(model(whole, use_cache=False).logits[:, len(prompt) - 1 : -1], ids)


WAYS = {"generation": by_generation, "dense": by_rows, "shared": score}


def measure(model: Any, prompt: Tensor, ids: Tensor, turns: int) -> dict[str, tuple[float, list[Tensor]]]:
    """Way -> (CPU seconds of forward and backward, gradients of the trained parameters)."""
    trained = [param for param in model.parameters() if param.requires_grad]
    results: dict[str, tuple[float, list[Tensor]]] = {}
    for _ in range(turns):
        for way, function in WAYS.items():
            began = time.process_time()
            gradients = list(torch.autograd.grad(function(model, prompt, ids).sum(), trained))
            seconds = time.process_time() - began
            results[way] = (min(seconds, results[way][0] if way in results else seconds), gradients)
    return results


def random_llama(layers: int, width: int) -> Any:
    """A Llama with random weights and trainable attention matrices. Raises: UsageError without transformers."""
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
            vocab_size=VOCAB,
        )
    ).eval()
    for name, param in model.named_parameters():
        param.requires_grad_(".self_attn." in name)
    return model


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m tasks.animal.benchmark", description=(__doc__ or "").split("\n")[0]
    )
    for name, default, what in (
        ("layers", 4, "blocks of the model"),
        ("width", 128, "its width"),
        ("rows", 16, "completions"),
        ("prompt", 64, "tokens of the prompt"),
        ("length", 24, "tokens of a completion"),
        ("turns", 3, "turns of which the best counts"),
    ):
        result.add_argument(f"--{name}", type=int, default=default, help=f"{what}; default: {default}")
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Measure and print; returns way -> CPU seconds."""
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    model = random_llama(args.layers, args.width)
    random = torch.Generator().manual_seed(1)
    prompt = torch.randint(VOCAB, (args.prompt,), generator=random)
    ids = torch.randint(VOCAB, (args.rows, args.length), generator=random)
    results = measure(model, prompt, ids, args.turns)
    slowest, reference = results["generation"]
    for way, (seconds, gradients) in results.items():
        pairs = zip(gradients, reference, strict=True)
        error = max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
        print(f"{way:<12}{seconds:8.3f} s   {slowest / seconds:5.1f} times as fast   gradients differ by {error:.0e}")
    return {way: seconds for way, (seconds, _) in results.items()}


if __name__ == "__main__":
    main()
