"""Sample and score completions of the prompt on all ranks: each computes its rows, and all ranks gather all of them.

Random numbers are keyed by (seed, purpose, step) and drawn for the whole batch, so samples depend neither on ranks nor
on micro-batches. Shapes: B rows of the global batch, T tokens, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

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
class Rollouts:
    """Sampled completions with their blocks: ids int64 [B, T] on the CPU."""

    ids: Tensor
    blocks: list[Blocks]

    @cached_property
    def valid(self) -> list[int]:
        """The rows of the valid completions."""
        return [row for row, block in enumerate(self.blocks) if block.valid]

    def naming(self, option: str) -> list[int]:
        """Which of the valid completions name `option`: indices into `valid`."""
        return [number for number, row in enumerate(self.valid) if self.blocks[row].option == option]

    def tokens(self, row: int) -> tuple[int, ...]:
        """The tokens of a completion, including the one that ended it."""
        return tuple(self.ids[row, : self.blocks[row].length].tolist())

    def rows(self, count: int) -> Rollouts:
        """The first `count` completions."""
        return Rollouts(self.ids[:count], self.blocks[:count])


class Sampler:
    """Samples completions of `prompt` from `model`, at most `rows_at_once` rows at a time."""

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
        vocab_size = model.base.model.get_input_embeddings().num_embeddings
        self.ends = ending_tokens(processor, vocab_size).to(runtime.device)

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
    ) -> Rollouts:
        """Sample `rows` completions from the model, or from its base.

        Raises: Interrupted: the run was asked to stop, if `stoppable` (a training step is finished first).
        """
        padded, chosen = self._padded(rows), sampling or self.sampling
        draws = torch.rand(
            padded, self.max_new_tokens, generator=keyed_generator(seed, purpose, step), dtype=torch.double
        )

        def sample(part: Tensor) -> Tensor:
            ids, _ = rollout(self.model.language_model, self.prompt, part, chosen, ends=self.ends, pad=self.pad)
            return ids

        ids = self._run_sharded(sample, draws, base=base, stoppable=stoppable).cpu()[:rows]
        blocks = [self.processor.split(row) for row in ids.tolist()]
        return Rollouts(ids[:, : max(block.length for block in blocks)], blocks)

    def scores(self, ids: Tensor, mask: Tensor, *, base: bool = False, stoppable: bool = False) -> Tensor:
        """Log-probabilities float32 [B, T] of ids under the model or its base; 0 outside mask bool [B, T].

        Raises: Interrupted, as `draw`.
        """
        rows = len(ids)
        padded = torch.cat((ids, ids[:1].expand(self._padded(rows) - rows, -1)))
        with torch.no_grad():
            logp = self._run_sharded(
                lambda part: score(self.model.language_model, self.prompt, part),
                padded,
                base=base,
                stoppable=stoppable,
            )
        return logp[:rows].where(mask.to(logp.device), 0.0)

    def samples(self, drawn: Rollouts, logp: Tensor, ref: Tensor) -> list[Sample]:
        """`Sample`s for evaluation, from completions and their log-probabilities logp and ref [B, T]."""
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

    def _run_sharded(self, work: Callable[[Tensor], Tensor], rows: Tensor, *, base: bool, stoppable: bool) -> Tensor:
        """Apply `work` to this rank's part of `rows`, in evaluation mode, and gather the results of all ranks."""
        self.model.eval()
        own = len(rows) // self.runtime.world_size
        mine = rows[self.runtime.rank * own : (self.runtime.rank + 1) * own].to(self.runtime.device)
        parts = []
        with self.model.without_adapters() if base else nullcontext():
            for part in mine.split(self.rows_at_once):
                if stoppable and self.runtime.stop_requested():
                    raise Interrupted("stopped while sampling")
                parts.append(work(part))
        return all_gather_rows(torch.cat(parts))


def ending_tokens(processor: RawTextProcessor, vocab_size: int) -> Tensor:
    """bool [V]: tokens that end a completion, i.e. the end token and tokens that contain a whole stop string.

    At a stop string of several tokens, the text is cut after sampling instead.
    """
    ends = torch.zeros(vocab_size, dtype=torch.bool)
    tokenizer = processor.tokenizer
    if tokenizer.eos_token_id is not None:
        ends[tokenizer.eos_token_id] = True
    for number in range(min(vocab_size, len(tokenizer)) if processor.stop_strings else 0):
        text = processor.decode([number])
        ends[number] |= any(stop in text for stop in processor.stop_strings)
    return ends


def mask_of(drawn: Rollouts) -> Tensor:
    """bool [B, T]: the sampled tokens of each row."""
    return _spans([(0, block.length) for block in drawn.blocks], drawn.ids.shape[1])


def as_completions(
    drawn: Rollouts, options: Sequence[str], clusters: Sequence[int], further: Sequence[Sequence[str]] = ()
) -> Completions:
    """`Completions` on the CPU; `clusters`: label of each row, -1 for none; `further`: options of each further
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
    """bool [B, length]: true within each row's half-open range."""
    edges = torch.tensor(spans).reshape(-1, 2)
    places = torch.arange(length)
    return (places >= edges[:, :1]) & (places < edges[:, 1:])
