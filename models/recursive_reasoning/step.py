"""One ACT step as a pure function of tensors, for torch.export and ONNX: state in, state out.

Shapes: B rows, T tokens, S positions, D width, E width of a puzzle embedding, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

INPUTS, EMBEDDING = "inputs", "puzzle_embedding"
ANSWERS = ("logits", "q_halt", "halts")


class OneStep(nn.Module):
    """One step of `model` (an `ACTModel` in evaluation mode), which takes rows of the puzzle table as an input.

    `forward(inputs [B, T] int32, puzzle_embedding [B, E] if there is a table, *state)` returns the state in the same
    order, logits [B, T, V], q_halt [B] and halts [B] bool (whether the row would halt here, as in training). The puzzle
    table of `model` is replaced by the identity.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.start: dict[str, Tensor] = {name: rows.contiguous()[0] for name, rows in model.inner.initial(1).items()}
        """Initial state of an episode, one row of each tensor: [S, D] for latents."""
        self.table: Tensor | None = None if model.puzzle_emb is None else model.puzzle_emb.weights
        """[N, E]"""
        if self.table is not None:
            model.inner.puzzle_emb = nn.Identity()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs of `forward`."""
        return (INPUTS, *(() if self.table is None else (EMBEDDING,)), *self.start)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of `forward`; those of the state are the input names prefixed with `next_`."""
        return (*(f"next_{name}" for name in self.start), *ANSWERS)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        named, inner = dict(zip(self.inputs, tensors, strict=True)), self.model.inner
        data = {INPUTS: named[INPUTS]}
        if self.table is not None:
            data["puzzle_identifiers"] = named[EMBEDDING]
        latents, _ = inner.recur({name: named[name] for name in self.start}, inner.embed(data))
        q_halt, q_continue = inner.q_values(latents)
        halts = self.model._wants_halt(q_halt, q_continue)
        return (*(latents[name] for name in self.start), inner.logits(latents), q_halt, halts)
