"""Documents continued by a model: answers to word problems, and the samples that an evaluation shows.

A document's context is what stands before the last field of its data set's template (`Answer: `), else the first
quarter of its tokens. The rest is filled in; its length is given, as in infilling.
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
from tasks.language_model.generation import until

CONTEXT = 0.25
ROWS = 32
"""Documents that are filled in at once."""


@dataclass(frozen=True)
class Gap:
    """A document with its end to be filled in."""

    number: int
    """Of the document in its split."""
    context: Tensor
    """int64 [n]"""
    rest: Tensor
    """int64 [m], the end token included."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The documents of a split whose ends a model fills in."""

    documents: Documents
    tokenizer: Tokenizer
    template: str
    shape: TextShape
    sampling: Sampling
    causal: bool

    def gaps(self, count: int | None, seed: int) -> list[Gap]:
        """At most `count` documents that fit into a block, drawn with `seed`: the same ones for every model."""
        order = keyed_numpy(seed, "feedback/answers").permutation(self.documents.count)
        made: list[Gap] = []
        for number in order.tolist():
            if count is not None and len(made) >= count:
                break
            if (gap := self._gap(number)) is not None:
                made.append(gap)
        return made

    def _gap(self, number: int) -> Gap | None:
        tokens = self.documents.document(number)
        if not 2 <= len(tokens) < self.documents.block_size:
            return None
        if mark := mark_of(self.template):
            before, separator, _ = self.tokenizer.decode(tokens).partition(mark)
            cut = len(self.tokenizer.encode(before + separator))
        else:
            cut = math.ceil(CONTEXT * len(tokens))
        whole = torch.from_numpy(tokens)
        end = torch.tensor([self.documents.stream.meta.eot])
        return Gap(number, whole[:cut], torch.cat((whole[cut:], end)))

    def fill(self, predict: Predict, gaps: Sequence[Gap], device: torch.device) -> tuple[list[str], list[Filled]]:
        """What the model writes behind each context; and how each row was filled."""
        texts: list[str] = []
        rows_made: list[Filled] = []
        for first in range(0, len(gaps), ROWS):
            some = gaps[first : first + ROWS]
            rows = [torch.cat((gap.context, torch.full_like(gap.rest, self.shape.mask_id))) for gap in some]
            tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.shape.pad_id)
            numbers = [gap.number for gap in some]
            made = fill(predict, tokens.to(device), self.shape, self.sampling, numbers=numbers, causal=self.causal)
            rows_made += map(made.row, range(len(some)))
            for row, gap in zip(made.tokens.cpu(), some, strict=True):
                low = len(gap.context)
                texts.append(self.text(until(row[low : low + len(gap.rest)], self.documents.stream.meta.eot)))
        return texts, rows_made

    def text(self, tokens: Tensor) -> str:
        """Tokens as text, without the end of the document."""
        end = self.documents.stream.meta.eot
        return self.tokenizer.decode([token for token in tokens.tolist() if token != end])

    def judge(
        self,
        evaluators: Sequence[Any],
        predict: Predict,
        runtime: Runtime,
        *,
        count: int | None,
        seed: int,
        passes: Callable[[Filled], int],
    ) -> dict[str, float | None]:
        """What `evaluators` make of the answers, and `answer_nfe`, the mean number of `passes` for an answer; the
        documents are shared among the ranks."""
        gaps = self.gaps(count, seed)[runtime.rank :: runtime.world_size]
        made, rows = self.fill(predict, gaps, runtime.device)
        results: dict[str, float | None] = {}
        for evaluator in evaluators:
            evaluator.begin()
            evaluator.update({"texts": [self.text(gap.rest) for gap in gaps]}, None, made, len(gaps))
            results |= evaluator.result()
        spent = torch.tensor([sum(map(passes, rows)), len(rows)], dtype=torch.float32)
        total, count = all_reduce_sum(spent).tolist()
        return {**results, "answer_nfe": total / count if count else None}


def mark_of(template: str) -> str:
    """The text before the last field of a template, from the field before it on; "" where it has fewer than two."""
    fields = list(FIELD.finditer(template))
    return template[fields[-2].end() : fields[-1].start()] if len(fields) > 1 else ""
