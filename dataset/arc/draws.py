"""The random numbers of the public builder, in its order: Mersenne Twister words, masked and rejected as numpy does.

numpy guarantees the stream of its legacy generator, so the words are stable. Drawing from them one by one in plain
Python is several times as fast as calling the generator for every number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np

WORDS = 1 << 14
"""Random words drawn from the generator at once."""
_COLOUR_STEPS = [(place, (1 << place.bit_length()) - 1) for place in range(8, 0, -1)]
"""(position, mask) of each swap when nine items are shuffled."""


def _words(seed: int) -> Iterator[int]:
    generator = np.random.MT19937()
    generator.state = cast(Any, np.random.RandomState(seed).get_state(legacy=False))
    while True:
        yield from generator.random_raw(WORDS).tolist()


class Draws:
    """The results of `np.random.seed(seed)` followed by `shuffle`, `randint` and `permutation` in the same order."""

    def __init__(self, seed: int) -> None:
        self._word: Callable[[], int] = _words(seed).__next__

    def up_to(self, limit: int) -> int:
        """An integer from 0 to `limit`, as `randint(0, limit + 1)`; a limit of 0 takes nothing from the stream."""
        if limit == 0:
            return 0
        mask = (1 << limit.bit_length()) - 1
        word = self._word
        while (value := word() & mask) > limit:
            pass
        return value

    def shuffle(self, items: list[Any]) -> None:
        """Shuffle in place, as `np.random.shuffle`."""
        for place in range(len(items) - 1, 0, -1):
            other = self.up_to(place)
            items[place], items[other] = items[other], items[place]

    def augmentation(self) -> tuple[int, bytes]:
        """(transform, new colours of the colours 1 to 9), as `randint(0, 8)` and `permutation(arange(1, 10))`."""
        word = self._word
        tid = word() & 7
        colours = bytearray(b"\1\2\3\4\5\6\7\10\11")
        for place, mask in _COLOUR_STEPS:
            while (other := word() & mask) > place:
                pass
            colours[place], colours[other] = colours[other], colours[place]
        return tid, bytes(colours)
