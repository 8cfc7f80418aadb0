"""One example with a model's answer after every ACT step, its layout on a board, and the selection of examples to show.

T positions of an example, S ACT steps. Positions without a label (-100) are not scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IGNORE, PAD = -100, 0
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3), 16: (4, 4)}
WALL = ("#5b6675", "#5b6675")
ARC = (
    ("#000000", "#ffffff"),
    ("#0074d9", "#ffffff"),
    ("#ff4136", "#000000"),
    ("#2ecc40", "#000000"),
    ("#ffdc00", "#000000"),
    ("#aaaaaa", "#000000"),
    ("#f012be", "#000000"),
    ("#ff851b", "#000000"),
    ("#7fdbff", "#000000"),
    ("#870c25", "#ffffff"),
)
"""(fill, ink) of the ten ARC colours; the digit in a cell is for eyes that confuse some of them."""

Mask = NDArray[np.bool_]
View = int | Literal["puzzle", "solution"]
"""Content of a board: the answer after a step (0-based), the puzzle or its solution."""


def title_of(view: View) -> str:
    """The title above a board."""
    return f"step {view + 1}" if isinstance(view, int) else view


@dataclass(frozen=True)
class Layout:
    """The grid of the T positions, and how each token is drawn."""

    rows: int
    columns: int
    symbols: tuple[str, ...]
    """Text of each token; empty for an empty cell."""
    blank: int | None = None
    """The token of a cell to be filled in; None if the data set has none."""
    box: tuple[int, int] | None = None
    """Rows and columns of a Sudoku box."""
    in_place: bool = False
    """Whether the answer is the puzzle with some cells changed; the others count as given."""
    paints: tuple[tuple[str, str] | None, ...] = ()
    """(fill, ink) of each token that is shown as a coloured cell; empty if none is."""

    @property
    def symbol_width(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.symbols))

    def paint(self, token: int) -> tuple[str, str] | None:
        return self.paints[token] if self.paints else None

    def heavy(self, index: int, *, along_rows: bool) -> bool:
        """Whether grid line `index` (0 = the outer edge) separates boxes."""
        size, every = (self.rows, 0) if along_rows else (self.columns, 1)
        return index in (0, size) or (self.box is not None and index % self.box[every] == 0)


def layout_of(seq_len: int, vocab_size: int) -> Layout:
    """The layout of a data set, inferred from its sequence length and vocabulary size.

    A square of `side` with a vocabulary of side + 2 (pad, blank, digits) is a Sudoku, with 6 tokens a maze (# SGo),
    with 12 an ARC canvas (pad, end of grid, ten colours), anything else a grid of tokens.
    """
    side = math.isqrt(seq_len)
    square = side * side == seq_len
    columns = side if square else side + 1
    rows = -(-seq_len // columns)
    if square and side in BOXES and vocab_size == side + 2:
        digits = tuple(str(digit) for digit in range(1, side + 1))
        return Layout(side, side, ("?", "", *digits), 1, BOXES[side], in_place=True)
    if square and vocab_size == 6:
        paints = (None, WALL, None, None, None, None)
        return Layout(side, side, ("?", "#", "", "S", "G", "o"), in_place=True, paints=paints)
    if square and vocab_size == 12:
        return Layout(side, side, ("", "·", *"0123456789"), paints=(None, None, *ARC))
    return Layout(rows, columns, ("", *(str(token) for token in range(1, vocab_size))))


@dataclass(frozen=True)
class Headline:
    """The heading of a drawing: the model, and how its examples were chosen."""

    title: str
    """project/run and the checkpoint's step"""
    subtitle: str
    facts: tuple[tuple[str, str], ...]
    """The same in more detail as (name, value), for a page."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One example with the model's answer after every ACT step."""

    number: int
    """Index of the example in its split, from 0."""
    layout: Layout
    """T = rows * columns"""
    inputs: np.ndarray
    """[T]"""
    labels: np.ndarray
    """[T], -100 if not scored."""
    answers: np.ndarray
    """[S, T]"""
    q_halt: np.ndarray
    """[S] the halting head's probability that the answer is right."""
    confidence: np.ndarray
    """[S, T] the model's probability of the token in its answer."""
    puzzle: str = ""
    """Name of its puzzle, if the data set has names: an ARC task and its augmentation."""

    @property
    def steps(self) -> int:
        return len(self.answers)

    @property
    def scored(self) -> Mask:
        """[T]"""
        scored: Mask = self.labels != IGNORE
        return scored

    @property
    def given(self) -> Mask:
        """[T] cells that the puzzle gives; none if the answer is another grid than the puzzle."""
        if not self.layout.in_place:
            return np.zeros_like(self.scored)
        blank = self.layout.blank
        stated: Mask = self.inputs == self.labels if blank is None else self.inputs != blank
        return self.scored & stated

    @property
    def to_find(self) -> Mask:
        """[T] scored and not given."""
        return self.scored & ~self.given

    def cells_found(self, step: int) -> int:
        """How many of the cells to find are right after `step` (0-based)."""
        return int((self.to_find & self.right(step)).sum())

    def cells_wrong(self, step: int) -> int:
        """How many scored cells, including given ones, are wrong after `step` (0-based)."""
        return int((self.scored & ~self.right(step)).sum())

    def right(self, step: int) -> Mask:
        """[T] scored and right after `step` (0-based)."""
        right: Mask = self.answers[step] == self.labels
        return self.scored & right

    def changed(self, step: int) -> Mask:
        """[T] scored and changed from the step before; nothing at the first step."""
        if step == 0:
            return np.zeros_like(self.scored)
        changed: Mask = self.answers[step] != self.answers[step - 1]
        return self.scored & changed

    def solved(self, step: int) -> bool:
        """Whether every scored cell is right after `step` (0-based)."""
        return bool(self.right(step).sum() == self.scored.sum())

    def tokens(self, view: View) -> np.ndarray:
        """[T] tokens of the cells of a board; 0 in unscored cells of a solution."""
        if view == "puzzle":
            return self.inputs
        return np.where(self.scored, self.labels, PAD) if view == "solution" else self.answers[view]

    def kinds(self, view: View) -> list[str]:
        """[T] how the cells of a board are drawn: given, right, wrong, plain, or none outside the grid."""
        if view == "puzzle":
            return ["none" if token == PAD else "plain" for token in self.inputs]
        right = self.scored if view == "solution" else self.right(view)
        return [
            "none" if not scored else "wrong" if not fits else "given" if given else "right"
            for scored, fits, given in zip(self.scored, right, self.given, strict=True)
        ]

    @property
    def views(self) -> list[View]:
        """All boards of an example in order; the puzzle only if the answers do not contain it."""
        return [*([] if self.layout.in_place else ["puzzle"]), *range(self.steps), "solution"]

    @property
    def solved_from(self) -> int | None:
        """The step (0-based) from which the answer stays right to the end; None if the last answer is not right."""
        unsolved = [step for step in range(self.steps) if not self.solved(step)]
        if not unsolved:
            return 0
        return unsolved[-1] + 1 if unsolved[-1] + 1 < self.steps else None

    @property
    def outcome(self) -> str:
        """`right from step 3 on` or `not solved`, steps counted from 1."""
        return "not solved" if self.solved_from is None else f"right from step {self.solved_from + 1} on"

    @property
    def halts_at(self) -> int | None:
        """The first step (0-based) at which the halting head would stop; None if there is none."""
        halting = np.flatnonzero(self.q_halt > 0.5)
        return int(halting[0]) if len(halting) else None

    @property
    def halting(self) -> str:
        """`would halt at step 4` or `would not halt`, steps counted from 1."""
        return "would not halt" if self.halts_at is None else f"would halt at step {self.halts_at + 1}"

    @property
    def changes(self) -> int:
        """Number of changed cells, summed over all steps."""
        return sum(int(self.changed(step).sum()) for step in range(self.steps))


def cropped(
    number: int,
    layout: Layout,
    inputs: np.ndarray,
    labels: np.ndarray,
    answers: np.ndarray,
    q_halt: np.ndarray,
    confidence: np.ndarray,
    puzzle: str = "",
) -> Trajectory:
    """A Trajectory cropped to the smallest part of the grid with all of the puzzle and its solution.

    ARC grids are thus shown without the canvas, and a sequence that does not fill its rectangle is padded.
    """
    used = np.flatnonzero((labels != IGNORE) | (inputs != PAD))
    if layout.in_place or not len(used):
        used = np.array([0, layout.rows * layout.columns - 1])
    rows, columns = np.divmod(used, layout.columns)
    down, across = np.arange(rows.min(), rows.max() + 1), np.arange(columns.min(), columns.max() + 1)
    positions = (down[:, None] * layout.columns + across).ravel()
    inside = positions < len(inputs)

    def cut(values: np.ndarray, filler: int) -> np.ndarray:
        return np.where(inside, values[..., np.minimum(positions, len(inputs) - 1)], filler)

    part = replace(layout, rows=len(down), columns=len(across))
    return Trajectory(
        number, part, cut(inputs, PAD), cut(labels, IGNORE), cut(answers, PAD), q_halt, cut(confidence, 0), puzzle
    )


def most_interesting(trajectories: Sequence[Trajectory], count: int) -> list[Trajectory]:
    """`count` examples: those solved latest, then those that change most, then the least certain; one of 3 unsolved.

    If the model is right from the first step, only its certainty distinguishes examples.
    """
    solved = [t for t in trajectories if t.solved_from is not None]
    failed = [t for t in trajectories if t.solved_from is None]
    solved.sort(key=lambda t: (-(t.solved_from or 0), -t.changes, float(t.q_halt.min()), t.number))
    failed.sort(key=lambda t: (-t.changes, t.number))
    room_for_failed = min(len(failed), max(count - len(solved), int(count >= 3)))
    return solved[: count - room_for_failed] + failed[:room_for_failed]
