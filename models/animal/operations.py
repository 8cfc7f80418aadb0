"""Operations of a causal language model of transformers behind one prompt, by the sizes of its matrices.

A multiplication and its addition are two operations. Linear layers and attention count (norms, activations and the
lookup of embeddings are below 1 %); attention counts every pair of a query and a key that is there, masked or not.
B rows, T tokens of each, P tokens before them whose keys and values are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Sizes:
    """What a pass multiplies with, in numbers of weights."""

    frozen: int
    """Of the linear layers in the blocks."""
    adapters: int
    output: int
    """Of the layer that scores all words."""
    attention: int
    """Width of queries, over the heads of all blocks."""

    def forward(self, rows: int, tokens: int, before: int, scored: int, *, adapted: bool = True) -> float:
        """One pass; `scored` tokens of each row are compared with all words."""
        weights = self.frozen + self.adapters * adapted
        return float(2 * rows * (tokens * weights + scored * self.output)) + self.pairs(
            rows * tokens * (before + tokens)
        )

    def pairs(self, count: float) -> float:
        """Of attention, for so many pairs of a query and a key: the score, and the weighted value."""
        return 4.0 * self.attention * count

    def sampling(self, rows: int, tokens: int, before: int) -> float:
        """The prompt once, then one token of each row after the other; the last one is not read."""
        steps = tokens - 1
        generated = self.forward(rows, steps, 0, steps) - self.pairs(rows * steps * steps)
        keys = steps * before + steps * (steps + 1) / 2
        return self.forward(1, before, 0, 1) + generated + self.pairs(rows * keys)

    def scoring(self, rows: int, tokens: int, before: int, *, adapted: bool = True) -> float:
        """The prompt once, then all tokens of each row but the last at once."""
        prompt = self.forward(1, before, 0, 1, adapted=adapted)
        return prompt + self.forward(rows, tokens - 1, before, tokens - 1, adapted=adapted)

    def training(self, rows: int, tokens: int, before: int) -> float:
        """`scoring`, and its backward pass: as much again, for the adapters and attention twice as much.

        The first layers of the first block, whose input needs no gradient, are counted as the others are.
        """
        read = self.adapters * (rows * (tokens - 1) + before)
        pairs = rows * (tokens - 1) * (before + tokens - 1) + before * before
        return 2 * self.scoring(rows, tokens, before) + 2 * read + self.pairs(pairs)


def sizes_of(model: Any, blocks: list[nn.Module]) -> Sizes:
    """Those of a model with adapters of peft in its `blocks`."""
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
