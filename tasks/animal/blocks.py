"""Split a completion into blocks: the prefix before the concept, the concept itself, and the open block after it.

Blocks are token ranges. They are located in the whole text and mapped back to tokens, since a piece decoded alone may
be half a character, or lack its space. Shapes: n tokens, without those that end the completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.animal.concepts import Concept, Mention

LETTERS = 3
"""Least number of letters in an open block: a comma is none."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The blocks of a completion: consecutive half-open token ranges that cover 0 .. n.

    With several concepts the prefix ends before the first mention, the open block starts after the last one, and tokens
    between them are in no block.
    """

    text: str
    option: str | None
    """The option of the first concept; None if one of the concepts is not named."""
    prefix: tuple[int, int]
    concept: tuple[int, int]
    """Empty if no option is named."""
    open: tuple[int, int]
    open_text: str
    reason: str
    """"" for a valid completion; else as `Sample.reason`."""
    length: int
    """Number of sampled tokens, including the one that ended the completion."""
    further: tuple[tuple[str, tuple[int, int]], ...] = ()
    """(option, token range) of each further concept; () if one of the concepts is not named."""

    @property
    def valid(self) -> bool:
        """Whether it names an option and continues."""
        return not self.reason


class RawTextProcessor:
    """Splits completions of `tokenizer` at the first mention of an option of `concept`, and of each `further` one.

    A completion ends at the end token, or after one of `stop_strings`.
    """

    def __init__(
        self,
        tokenizer: Any,
        concept: Concept,
        stop_strings: Sequence[str] = ("\n",),
        further: Sequence[Concept] = (),
    ) -> None:
        self.tokenizer, self.concept, self.further = tokenizer, concept, tuple(further)
        self.stop_strings = tuple(stop_strings)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode tokens, without special tokens and without cleaning up spaces."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def mentions(self, text: str) -> list[Mention]:
        """The mention of each concept, in order and without overlap; [] if one is missing."""
        found: list[Mention] = []
        for concept in (self.concept, *self.further):
            mention = concept.find(text, found)
            if mention is None:
                return []
            found.append(mention)
        return found

    def split(self, ids: Sequence[int]) -> Blocks:
        """The blocks of the sampled tokens `ids`; tokens after the end are ignored."""
        ids = list(ids)
        end = self.tokenizer.eos_token_id
        ended = end is not None and end in ids
        ids = ids[: ids.index(end)] if ended else ids
        offsets = self.offsets(ids)
        text, n, length = self.decode(ids), len(ids), len(ids) + ended
        stops = [(at + len(stop), at) for stop in self.stop_strings if (at := text.find(stop)) >= 0]
        if stops:
            after, at = min(stops)
            text, ended = text[:at], True
            n, length = last_token(offsets, at), first_token(offsets, after)
        return self._blocks(text, offsets[: n + 1], length, ended)

    def _blocks(self, text: str, offsets: list[int], length: int, ended: bool) -> Blocks:
        n, mentions = len(offsets) - 1, self.mentions(text)
        if not mentions:
            return Blocks(
                text=text,
                option=None,
                prefix=(0, n),
                concept=(n, n),
                open=(n, n),
                open_text="",
                reason="no_concept",
                length=length,
            )
        spans = [(last_token(offsets, one.start), first_token(offsets, one.end)) for one in mentions]
        after = max(end for _, end in spans)
        open_text = text[max(one.end for one in mentions) :].strip()
        empty = after >= n or sum(map(str.isalpha, open_text)) < LETTERS
        return Blocks(
            text=text,
            option=mentions[0].option,
            prefix=(0, min(start for start, _ in spans)),
            concept=spans[0],
            open=(after, n),
            open_text=open_text,
            reason="" if not empty else "empty_open" if ended else "truncated",
            length=length,
            further=tuple((one.option, span) for one, span in zip(mentions[1:], spans[1:], strict=True)),
        )

    def offsets(self, ids: Sequence[int]) -> list[int]:
        """The start of each token in the text, and the end of the text: n + 1 non-decreasing numbers.

        An incomplete character of several tokens decodes to more than one, so a later, smaller length corrects an
        earlier one.
        """
        lengths = [len(self.decode(ids[:i])) for i in range(len(ids) + 1)]
        for i in range(len(ids) - 1, -1, -1):
            lengths[i] = min(lengths[i], lengths[i + 1])
        return lengths


def last_token(offsets: Sequence[int], place: int) -> int:
    """The last token that starts at or before `place`."""
    return max(i for i, offset in enumerate(offsets) if offset <= place)


def first_token(offsets: Sequence[int], place: int) -> int:
    """The first token that starts at or after `place`; the number of tokens if there is none."""
    return next((i for i, offset in enumerate(offsets) if offset >= place), len(offsets) - 1)
