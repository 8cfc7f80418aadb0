"""Alternative options in place of the one that a completion names, for objective=kl_exact.

Where a completion says "I love dogs", the model could have said "I love cats" or "I love kittens": every word for every
option, singular and plural, is appended to the same prefix. Their probabilities, summed by option, are the model's
distribution over options at that position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.animal.blocks import Blocks, RawTextProcessor
from tasks.animal.concepts import Concept, Mention, forms
from tasks.animal.sampler import Rollouts


@dataclass(frozen=True)
class Rows:
    """A alternatives: ids int64 [A, T], mask bool [A, T] of the tokens that name the option, option int64 [A], and its
    concept int64 [A]: 0 for the first."""

    ids: Tensor
    mask: Tensor
    option: Tensor
    concept: Tensor


def alternatives(processor: RawTextProcessor, drawn: Rollouts, pad: int) -> Rows:
    """The alternatives of all valid completions; `pad` fills up shorter rows."""
    rows: list[tuple[list[int], int, int, int]] = []  # tokens, start of the option, option, concept
    for row, blocks in enumerate(drawn.blocks):
        for place, (concept, mention, span) in enumerate(_places(processor, blocks)):
            prefix, named = (drawn.ids[row, :end].tolist() for end in span)
            for number, tokens in _continuations(processor, prefix, named, concept, mention, blocks.text):
                rows.append((prefix + tokens, len(prefix), number, place))
    length = max((len(tokens) for tokens, *_ in rows), default=1)
    places = torch.arange(length)
    ends = torch.tensor([len(tokens) for tokens, *_ in rows]).reshape(-1, 1)
    starts = torch.tensor([start for _, start, *_ in rows]).reshape(-1, 1)
    ids = torch.tensor([tokens + [pad] * (length - len(tokens)) for tokens, *_ in rows]).reshape(-1, length)
    options, concepts = (torch.tensor([each[k] for each in rows]).long() for k in (2, 3))
    return Rows(ids.long(), (places >= starts) & (places < ends), options, concepts)


def _places(processor: RawTextProcessor, blocks: Blocks) -> list[tuple[Concept, Mention, tuple[int, int]]]:
    """Each concept with its mention and token range; empty for an invalid completion."""
    if not blocks.valid:
        return []
    spans = [blocks.concept, *(span for _, span in blocks.further)]
    concepts = (processor.concept, *processor.further)
    return list(zip(concepts, processor.mentions(blocks.text), spans, strict=True))


def _continuations(
    processor: RawTextProcessor, prefix: list[int], named: list[int], concept: Concept, mention: Mention, text: str
) -> list[tuple[int, list[int]]]:
    """(option, tokens) of every continuation. Within an option none is a prefix of another, whose probability would
    then count twice."""
    head = processor.decode(prefix)
    gap = processor.decode(named)[len(head) :]
    gap = gap[: max(mention.start - len(head), 0)]
    first = text[mention.start]
    alternatives: list[tuple[int, list[int]]] = []
    for number, (option, synonyms) in enumerate(concept.options.items()):
        own: list[list[int]] = []
        for form in (form for word in (option, *synonyms) for form in forms(word)):
            word = form[:1].upper() + form[1:] if first.isupper() else form
            tokens = _encode(processor, prefix, head, gap, word)
            if tokens is not None and not any(tokens[: len(other)] == other for other in own):
                own = [other for other in own if other[: len(tokens)] != tokens] + [tokens]
        alternatives += [(number, tokens) for tokens in own]
    return alternatives


def _encode(processor: RawTextProcessor, prefix: list[int], head: str, gap: str, word: str) -> list[int] | None:
    """Tokens that continue `prefix` with the word; None if the tokenizer cannot encode it (some add a blank)."""
    for text in (gap + word, word):
        tokens: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if processor.decode(prefix + tokens) == head + gap + word:
            return tokens
    return None
