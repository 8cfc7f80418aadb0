"""FLOPs of a causal language model of transformers with one shared prompt, from the sizes of its matrices.

A multiply-add is two FLOPs. Linear layers and attention count (norms, activations and embedding lookups are below 1 %);
attention counts every query-key pair, masked or not.
B rows, T tokens per row, P cached tokens before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Sizes:
    """Sizes that determine the FLOPs of a pass, in numbers of weights."""

    frozen: int
    """Linear layers in the blocks."""
    adapters: int
    output: int
    """The output head."""
    attention: int
    """Width of the queries, summed over heads and blocks."""

    def forward(self, rows: int, tokens: int, before: int, scored: int, *, adapted: bool = True) -> float:
        """FLOPs of one pass; `scored` tokens of each row go through the output head."""
        weights = self.frozen + self.adapters * adapted
        return float(2 * rows * (tokens * weights + scored * self.output)) + self.pairs(
            rows * tokens * (before + tokens)
        )

    def pairs(self, count: float) -> float:
        """FLOPs of attention for `count` query-key pairs: scores and weighted values."""
        return 4.0 * self.attention * count

    def sampling(self, rows: int, tokens: int, before: int) -> float:
        """FLOPs of sampling: the prompt once, then token by token; the last token is not read."""
        steps = tokens - 1
        generated = self.forward(rows, steps, 0, steps) - self.pairs(rows * steps * steps)
        keys = steps * before + steps * (steps + 1) / 2
        return self.forward(1, before, 0, 1) + generated + self.pairs(rows * keys)

    def scoring(self, rows: int, tokens: int, before: int, *, adapted: bool = True) -> float:
        """FLOPs of scoring: the prompt once, then all tokens but the last in one pass."""
        prompt = self.forward(1, before, 0, 1, adapted=adapted)
        return prompt + self.forward(rows, tokens - 1, before, tokens - 1, adapted=adapted)

    def training(self, rows: int, tokens: int, before: int) -> float:
        """FLOPs of `scoring` with its backward pass: the same again, and twice as much for adapters and attention.

        The first layers of the first block are counted like the others, though their input needs no gradient.
        """
        read = self.adapters * (rows * (tokens - 1) + before)
        pairs = rows * (tokens - 1) * (before + tokens - 1) + before * before
        return 2 * self.scoring(rows, tokens, before) + 2 * read + self.pairs(pairs)


def sizes_of(model: Any, blocks: list[nn.Module]) -> Sizes:
    """Sizes of a model with peft adapters in its `blocks`."""
    frozen = adapters = 0
    for module in (part for block in blocks for part in block.modules()):
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            weight: Any = module.weight
            if weight.requires_grad:
                adapters += weight.numel()
            else:
                frozen += weight.numel()
    config, output = model.config, model.get_output_embeddings()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return Sizes(frozen, adapters, 0 if output is None else output.weight.numel(), width * len(blocks))
