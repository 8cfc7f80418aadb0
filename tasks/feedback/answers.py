"""Continuations of documents: answers to word problems, and the samples of an evaluation.

A document's context is the text before the last field of its data set's template (`Answer: `), else the first quarter
of its tokens. The model fills in the rest, whose length is given, as in infilling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dataset.text.corpus import FIELD
from dataset.text.documents import Documents
from dataset.text.tokenizer import Tokenizer
from engine.distributed import all_reduce_sum, keyed_numpy
from engine.task import Runtime
from models.feedback.config import TextShape
from tasks.feedback.generation import Filled, Predict, Sampling, fill
from tasks.language_model.generation import truncate

CONTEXT = 0.25
ROWS = 32
"""Documents per batch."""


@dataclass(frozen=True)
class Gap:
    """A document whose end is to be filled in. Shapes: n tokens of context, m of the rest."""

    number: int
    """Index of the document in its split."""
    context: Tensor
    """int64 [n]"""
    rest: Tensor
    """int64 [m], the end token included."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Fills in the ends of a split's documents."""

    documents: Documents
    tokenizer: Tokenizer
    template: str
    shape: TextShape
    sampling: Sampling
    causal: bool

    def gaps(self, count: int | None, seed: int) -> list[Gap]:
        """At most `count` documents that fit into a block, drawn with `seed`: the same ones for every model."""
        order = keyed_numpy(seed, "feedback/answers").permutation(self.documents.count)
        gaps: list[Gap] = []
        for number in order.tolist():
            if count is not None and len(gaps) >= count:
                break
            if (gap := self._gap(number)) is not None:
                gaps.append(gap)
        return gaps

    def _gap(self, number: int) -> Gap | None:
        tokens = self.documents.document(number)
        if not 2 <= len(tokens) < self.documents.block_size:
            return None
        if marker := answer_marker(self.template):
            before, separator, _ = self.tokenizer.decode(tokens).partition(marker)
            cut = len(self.tokenizer.encode(before + separator))
        else:
            cut = math.ceil(CONTEXT * len(tokens))
        whole = torch.from_numpy(tokens)
        end = torch.tensor([self.documents.stream.meta.eot])
        return Gap(number, whole[:cut], torch.cat((whole[cut:], end)))

    def fill(self, predict: Predict, gaps: Sequence[Gap], device: torch.device) -> tuple[list[str], list[Filled]]:
        """(the model's continuation of each context, how each row was filled)."""
        texts: list[str] = []
        filled_rows: list[Filled] = []
        for first in range(0, len(gaps), ROWS):
            chunk = gaps[first : first + ROWS]
            rows = [torch.cat((gap.context, torch.full_like(gap.rest, self.shape.mask_id))) for gap in chunk]
            tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.shape.pad_id)
            numbers = [gap.number for gap in chunk]
            filled = fill(predict, tokens.to(device), self.shape, self.sampling, numbers=numbers, causal=self.causal)
            filled_rows += map(filled.row, range(len(chunk)))
            for row, gap in zip(filled.tokens.cpu(), chunk, strict=True):
                low = len(gap.context)
                texts.append(self.text(truncate(row[low : low + len(gap.rest)], self.documents.stream.meta.eot)))
        return texts, filled_rows

    def text(self, tokens: Tensor) -> str:
        """Decode tokens, without end-of-document tokens."""
        end = self.documents.stream.meta.eot
        return self.tokenizer.decode([token for token in tokens.tolist() if token != end])

    def score(
        self,
        evaluators: Sequence[Any],
        predict: Predict,
        runtime: Runtime,
        *,
        count: int | None,
        seed: int,
        passes: Callable[[Filled], int],
    ) -> dict[str, float | None]:
        """The metrics of `evaluators` on the answers, and `answer_nfe`, the mean number of forward `passes` per answer;
        each rank answers its share of the documents."""
        gaps = self.gaps(count, seed)[runtime.rank :: runtime.world_size]
        answers, rows = self.fill(predict, gaps, runtime.device)
        results: dict[str, float | None] = {}
        for evaluator in evaluators:
            evaluator.begin()
            evaluator.update({"texts": [self.text(gap.rest) for gap in gaps]}, None, answers, len(gaps))
            results |= evaluator.result()
        spent = torch.tensor([sum(map(passes, rows)), len(rows)], dtype=torch.float32)
        total, count = all_reduce_sum(spent).tolist()
        return {**results, "answer_nfe": total / count if count else None}


def answer_marker(template: str) -> str:
    """The text between the last two fields of a template; "" if it has fewer than two fields."""
    fields = list(FIELD.finditer(template))
    return template[fields[-2].end() : fields[-1].start()] if len(fields) > 1 else ""
