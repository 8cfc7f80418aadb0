"""A completion split into blocks: what precedes the concept, the concept itself, and the open block that follows it.

Blocks are ranges of tokens. They are found in the text as a whole and mapped back to tokens, since a piece decoded
alone may be half a character, or lack its space. n tokens, those of the end not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.animal.concepts import Concept, Mention

LETTERS = 3
"""An open block has this many letters at least: a comma is none."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Where the blocks of a completion lie: half-open ranges of its tokens, in this order, that cover 0 .. n.

    Of several concepts the prefix ends before the first mention, the open block begins behind the last one, and what
    stands between them is in no block.
    """

    text: str
    option: str | None
    """Of the first concept; None where one of the concepts is not named."""
    prefix: tuple[int, int]
    concept: tuple[int, int]
    """Empty where no option is named."""
    open: tuple[int, int]
    open_text: str
    reason: str
    """"" for a valid completion; else as `Sample.reason`."""
    length: int
    """Tokens up to and including the one that ended it: those that were sampled."""
    further: tuple[tuple[str, tuple[int, int]], ...] = ()
    """Option and tokens of each further concept; () where one of the concepts is not named."""

    @property
    def valid(self) -> bool:
        """Whether it names an option and continues."""
        return not self.reason


class RawTextProcessor:
    """Splits completions of `tokenizer` at the first mention of an option of `concept`, and of each `further` one.

    A completion ends at the end token, or where one of `stop_strings` is complete.
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
        """The text of tokens, end tokens left out and blanks as they are."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def mentions(self, text: str) -> list[Mention]:
        """That of each concept, in their order, none within another; [] where one is missing."""
        found: list[Mention] = []
        for concept in (self.concept, *self.further):
            mention = concept.find(text, found)
            if mention is None:
                return []
            found.append(mention)
        return found

    def split(self, ids: Sequence[int]) -> Blocks:
        """The blocks of the sampled tokens `ids`, whatever is behind their end."""
        ids = list(ids)
        end = self.tokenizer.eos_token_id
        ended = end is not None and end in ids
        ids = ids[: ids.index(end)] if ended else ids
        offsets = self.offsets(ids)
        text, n, length = self.decode(ids), len(ids), len(ids) + ended
        stops = [(at + len(stop), at) for stop in self.stop_strings if (at := text.find(stop)) >= 0]
        if stops:
            behind, at = min(stops)
            text, ended = text[:at], True
            n, length = last_at(offsets, at), first_at(offsets, behind)
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
        spans = [(last_at(offsets, one.start), first_at(offsets, one.end)) for one in mentions]
        behind = max(end for _, end in spans)
        open_text = text[max(one.end for one in mentions) :].strip()
        empty = behind >= n or sum(map(str.isalpha, open_text)) < LETTERS
        return Blocks(
            text=text,
            option=mentions[0].option,
            prefix=(0, min(start for start, _ in spans)),
            concept=spans[0],
            open=(behind, n),
            open_text=open_text,
            reason="" if not empty else "empty_open" if ended else "truncated",
            length=length,
            further=tuple((one.option, span) for one, span in zip(mentions[1:], spans[1:], strict=True)),
        )

    def offsets(self, ids: Sequence[int]) -> list[int]:
        """Where each token begins in the text, and its end: n + 1 numbers that do not fall.

        A character of several tokens counts as more than one until it is complete, so a later, smaller length corrects
        an earlier one.
        """
        lengths = [len(self.decode(ids[:i])) for i in range(len(ids) + 1)]
        for i in range(len(ids) - 1, -1, -1):
            lengths[i] = min(lengths[i], lengths[i + 1])
        return lengths


def last_at(offsets: Sequence[int], place: int) -> int:
    """The last token that begins at `place` or before."""
    return max(i for i, offset in enumerate(offsets) if offset <= place)


def first_at(offsets: Sequence[int], place: int) -> int:
    """The first token that begins at `place` or behind it; the number of tokens where none does."""
    return next((i for i, offset in enumerate(offsets) if offset >= place), len(offsets) - 1)
