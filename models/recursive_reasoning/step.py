"""One ACT step as a function of tensors, for torch.export and ONNX: the state comes in and goes out.

Shapes: B rows, T tokens, S positions, D width, E width of a puzzle embedding, V words.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

INPUTS, EMBEDDING = "inputs", "puzzle_embedding"
ANSWERS = ("logits", "q_halt", "halts")


class _Given(nn.Module):
    """In place of a puzzle table: the rows themselves."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows


class OneStep(nn.Module):
    """Takes `model` (an `ACTModel` in evaluation mode) apart from its puzzle table: the graph is given rows of it.

    `forward(inputs [B, T] int32, puzzle_embedding [B, E] if there is a table, state ...)` returns the state in the same
    order, logits [B, T, V], q_halt [B] and halts [B] bool: would the row halt here by the rule of training?
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.start: dict[str, Tensor] = {name: rows.contiguous()[0] for name, rows in model.inner.initial(1).items()}
        """What an episode begins with, one row of each part of the state: [S, D] for latents."""
        self.table: Tensor | None = None if model.puzzle_emb is None else model.puzzle_emb.weights
        """[N, E]"""
        if self.table is not None:
            model.inner.puzzle_emb = _Given()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what `forward` takes."""
        return (INPUTS, *(() if self.table is None else (EMBEDDING,)), *self.start)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` returns; the state's are those of the inputs with `next_` before them."""
        return (*(f"next_{name}" for name in self.start), *ANSWERS)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given, inner = dict(zip(self.inputs, tensors, strict=True)), self.model.inner
        data = {INPUTS: given[INPUTS]}
        if self.table is not None:
            data["puzzle_identifiers"] = given[EMBEDDING]
        latents, _ = inner.recur({name: given[name] for name in self.start}, inner.embed(data))
        q_halt, q_continue = inner.q_values(latents)
        halts = self.model._willing(q_halt, q_continue)
        return (*(latents[name] for name in self.start), inner.logits(latents), q_halt, halts)
