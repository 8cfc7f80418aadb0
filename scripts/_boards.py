"""What there is to show of a model thinking about one example, and which examples are worth showing.

T positions of an example, S ACT steps. Positions without a label (-100) are not judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IGNORE = -100
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3), 16: (4, 4)}


@dataclass(frozen=True)
class Layout:
    """How the T positions lie on a grid and what each token looks like."""

    rows: int
    columns: int
    symbols: tuple[str, ...]
    """Text of each token; empty for an empty cell."""
    blank: int | None = None
    """The token of a cell to be filled in; None where the data set has no such token."""
    box: tuple[int, int] | None = None
    """Rows and columns of a Sudoku box."""

    @property
    def symbol_width(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.symbols))

    def place(self, position: int) -> tuple[int, int]:
        """Position in the sequence -> (row, column)."""
        return divmod(position, self.columns)

    def heavy(self, index: int, *, along_rows: bool) -> bool:
        """Whether grid line `index` (0 = the outer edge) separates boxes."""
        size, every = (self.rows, 0) if along_rows else (self.columns, 1)
        return index in (0, size) or (self.box is not None and index % self.box[every] == 0)


def layout_of(seq_len: int, vocab_size: int) -> Layout:
    """A square of `side` with a vocabulary of side + 2 (pad, blank, digits) is a Sudoku, all else a grid of tokens."""
    side = math.isqrt(seq_len)
    if side * side == seq_len and side in BOXES and vocab_size == side + 2:
        return Layout(side, side, ("?", "", *(str(digit) for digit in range(1, side + 1))), 1, BOXES[side])
    columns = side if side * side == seq_len else side + 1
    return Layout(-(-seq_len // columns), columns, ("", *(str(token) for token in range(1, vocab_size))))


@dataclass(frozen=True, eq=False)
class Thought:
    """One example with the model's answer after every ACT step."""

    number: int
    """Of the example in its split, from 0."""
    inputs: np.ndarray
    """[T]"""
    labels: np.ndarray
    """[T], -100 where not scored."""
    answers: np.ndarray
    """[S, T]"""
    q_halt: np.ndarray
    """[S] probability that the halting head gives the answer of being right."""

    @property
    def steps(self) -> int:
        return len(self.answers)

    @property
    def scored(self) -> np.ndarray:
        """[T] bool"""
        return self.labels != IGNORE

    def given(self, layout: Layout) -> np.ndarray:
        """[T] bool: cells that the puzzle states; without a blank token, those that are to stay as they are."""
        if layout.blank is not None:
            return self.scored & (self.inputs != layout.blank)
        return self.scored & (self.inputs == self.labels)

    def right(self, step: int) -> np.ndarray:
        """[T] bool: scored and right after `step` (0-based)."""
        return self.scored & (self.answers[step] == self.labels)

    def changed(self, step: int) -> np.ndarray:
        """[T] bool: scored and other than after the step before; nothing at the first step."""
        if step == 0:
            return np.zeros_like(self.scored)
        return self.scored & (self.answers[step] != self.answers[step - 1])

    def solved(self, step: int) -> bool:
        """Whether every scored cell is right after `step` (0-based)."""
        return bool(self.right(step).sum() == self.scored.sum())

    @property
    def solved_from(self) -> int | None:
        """The step (0-based) from which on the answer is right to the end; None when the last answer is not."""
        wrong = [step for step in range(self.steps) if not self.solved(step)]
        if not wrong:
            return 0
        return wrong[-1] + 1 if wrong[-1] + 1 < self.steps else None

    @property
    def halts_at(self) -> int | None:
        """The first step (0-based) at which the halting head would stop, None if at none."""
        willing = np.flatnonzero(self.q_halt > 0.5)
        return int(willing[0]) if len(willing) else None

    @property
    def changes(self) -> int:
        """Cells changed over all steps."""
        return sum(int(self.changed(step).sum()) for step in range(self.steps))


def most_interesting(thoughts: Sequence[Thought], count: int) -> list[Thought]:
    """Those solved latest, then those that change most, then the least certain; with room for three, one unsolved.

    A model that is right from the first step on leaves only its certainty to tell examples apart.
    """
    solved = [t for t in thoughts if t.solved_from is not None]
    failed = [t for t in thoughts if t.solved_from is None]
    solved.sort(key=lambda t: (-(t.solved_from or 0), -t.changes, float(t.q_halt.min()), t.number))
    failed.sort(key=lambda t: (-t.changes, t.number))
    room_for_failed = min(len(failed), max(count - len(solved), int(count >= 3)))
    return solved[: count - room_for_failed] + failed[:room_for_failed]
