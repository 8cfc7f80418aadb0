"""Completions of the prompt, sampled and scored by all ranks together: each has its rows, every rank gets all of them.

Random numbers are keyed by (seed, purpose, step) and drawn for the whole batch, so neither ranks nor micro-batches
change a sample. B rows of the global batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.distributed import all_gather_rows, keyed_generator
from engine.errors import Interrupted
from engine.task import Runtime
from models.animal.adapter import LoraLM
from models.animal.completions import NONE, Completions
from models.animal.language_model import Sampling, rollout, score
from tasks.animal.blocks import Blocks, RawTextProcessor
from tasks.animal.samples import Sample


@dataclass(frozen=True)
class Drawn:
    """Completions with their blocks: ids int64 [B, T] on the CPU."""

    ids: Tensor
    blocks: list[Blocks]

    def tokens(self, row: int) -> tuple[int, ...]:
        """Those of a completion, the one that ended it included."""
        return tuple(self.ids[row, : self.blocks[row].length].tolist())

    def rows(self, count: int) -> Drawn:
        """The first `count`."""
        return Drawn(self.ids[:count], self.blocks[:count])


class Sampler:
    """Samples from `model` behind `prompt`, at most `rows_at_once` rows at a time."""

    def __init__(
        self,
        model: LoraLM,
        processor: RawTextProcessor,
        *,
        prompt: str,
        max_new_tokens: int,
        sampling: Sampling,
        rows_at_once: int,
        runtime: Runtime,
    ) -> None:
        self.model, self.processor, self.sampling, self.runtime = model, processor, sampling, runtime
        self.max_new_tokens, self.rows_at_once = max_new_tokens, rows_at_once
        tokenizer = processor.tokenizer
        self.prompt = torch.tensor(tokenizer(prompt)["input_ids"], device=runtime.device)
        self.pad = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
        words = model.base.model.get_input_embeddings().num_embeddings
        self.ends = ending_tokens(processor, words).to(runtime.device)

    def draw(
        self,
        seed: int,
        purpose: str,
        step: int,
        rows: int,
        *,
        base: bool = False,
        sampling: Sampling | None = None,
        stoppable: bool = False,
    ) -> Drawn:
        """`rows` completions by the model, or by its base.

        Raises: Interrupted: the run was asked to stop, and may be (`stoppable`): a training step is finished first.
        """
        padded, chosen = self._padded(rows), sampling or self.sampling
        draws = torch.rand(
            padded, self.max_new_tokens, generator=keyed_generator(seed, purpose, step), dtype=torch.double
        )

        def sample(some: Tensor) -> Tensor:
            ids, _ = rollout(self.model.language_model, self.prompt, some, chosen, ends=self.ends, pad=self.pad)
            return ids

        ids = self._shared(sample, draws, base=base, stoppable=stoppable).cpu()[:rows]
        blocks = [self.processor.split(row) for row in ids.tolist()]
        return Drawn(ids[:, : max(block.length for block in blocks)], blocks)

    def scores(self, ids: Tensor, mask: Tensor, *, base: bool = False, stoppable: bool = False) -> Tensor:
        """Log-probabilities float32 [B, T] of ids, 0 outside of mask bool [B, T], by the model or by its base.

        Raises: Interrupted: as `draw`.
        """
        rows = len(ids)
        padded = torch.cat((ids, ids[:1].expand(self._padded(rows) - rows, -1)))
        with torch.no_grad():
            made = self._shared(
                lambda some: score(self.model.language_model, self.prompt, some),
                padded,
                base=base,
                stoppable=stoppable,
            )
        return made[:rows].where(mask.to(made.device), 0.0)

    def samples(self, drawn: Drawn, logp: Tensor, ref: Tensor) -> list[Sample]:
        """As evaluation knows them; logp and ref [B, T]."""
        sums = torch.stack((logp.sum(-1), ref.sum(-1)), -1).tolist()
        return [
            Sample(
                text=block.text,
                option=block.option,
                open_text=block.open_text,
                reason=block.reason,
                further=tuple(option for option, _ in block.further),
                tokens=block.length,
                logp=own,
                ref_logp=base,
            )
            for block, (own, base) in zip(drawn.blocks, sums, strict=True)
        ]

    def _padded(self, rows: int) -> int:
        return -(-rows // self.runtime.world_size) * self.runtime.world_size

    def _shared(self, work: Callable[[Tensor], Tensor], rows: Tensor, *, base: bool, stoppable: bool) -> Tensor:
        """`work` done on this rank's part of `rows`, in evaluation mode; the parts of all ranks, in order."""
        self.model.eval()
        own = len(rows) // self.runtime.world_size
        mine = rows[self.runtime.rank * own : (self.runtime.rank + 1) * own].to(self.runtime.device)
        parts = []
        with self.model.without_adapters() if base else nullcontext():
            for some in mine.split(self.rows_at_once):
                if stoppable and self.runtime.stop_requested():
                    raise Interrupted("stopped while sampling")
                parts.append(work(some))
        return all_gather_rows(torch.cat(parts))


def ending_tokens(processor: RawTextProcessor, words: int) -> Tensor:
    """bool [V]: tokens that end a completion, the end token and those that hold a whole stop string.

    A stop string of several tokens does not: the text is cut there afterwards.
    """
    ends = torch.zeros(words, dtype=torch.bool)
    tokenizer = processor.tokenizer
    if tokenizer.eos_token_id is not None:
        ends[tokenizer.eos_token_id] = True
    for number in range(min(words, len(tokenizer)) if processor.stop_strings else 0):
        text = processor.decode([number])
        ends[number] |= any(stop in text for stop in processor.stop_strings)
    return ends


def mask_of(drawn: Drawn) -> Tensor:
    """bool [B, T]: the tokens that were sampled."""
    return _spans([(0, block.length) for block in drawn.blocks], drawn.ids.shape[1])


def as_completions(
    drawn: Drawn, options: Sequence[str], clusters: Sequence[int], further: Sequence[Sequence[str]] = ()
) -> Completions:
    """Tensors on the CPU; `clusters` has a number for each row, -1 for none, `further` the options of each further
    concept."""
    length, valid = drawn.ids.shape[1], [block.valid for block in drawn.blocks]
    numbers = {option: number for number, option in enumerate(options)}
    spans, named = [torch.zeros(len(valid), 0, length, dtype=torch.bool)], [torch.zeros(len(valid), 0).long()]
    for place, names in enumerate(further):
        own = [block.further[place] if block.valid else ("", (0, 0)) for block in drawn.blocks]
        spans.append(_spans([span for _, span in own], length).unsqueeze(1))
        known = {option: number for number, option in enumerate(names)}
        named.append(torch.tensor([known.get(option, NONE) for option, _ in own]).unsqueeze(1))
    return Completions(
        ids=drawn.ids,
        mask=mask_of(drawn),
        concept=_spans([block.concept if block.valid else (0, 0) for block in drawn.blocks], length),
        open=_spans([block.open if block.valid else (0, 0) for block in drawn.blocks], length),
        option=torch.tensor(
            [numbers[str(b.option)] if ok else NONE for b, ok in zip(drawn.blocks, valid, strict=True)]
        ),
        cluster=torch.tensor(list(clusters), dtype=torch.long),
        further=torch.cat(spans, 1),
        further_option=torch.cat(named, 1),
    )


def _spans(spans: Sequence[tuple[int, int]], length: int) -> Tensor:
    """bool [B, length]: true from the first to before the second number of each row."""
    edges = torch.tensor(spans).reshape(-1, 2)
    places = torch.arange(length)
    return (places >= edges[:, :1]) & (places < edges[:, 1:])
