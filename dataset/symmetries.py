"""Symmetries of Sudoku and maze data sets: maps of a puzzle that map its answer alike.

A copies, T sequence length, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.maze.generate import symmetric_copies
from dataset.metadata import PuzzleMetadata, read_card
from dataset.sudoku.augment import draw_transforms
from dataset.sudoku.grid import geometry, size_of
from dataset.writing import CARD


@dataclass(frozen=True)
class Symmetries:
    """Symmetries of A copies: copy a has in cell j the token `tokens[a, t]` if the puzzle has t in `cells[a, j]`."""

    cells: np.ndarray
    """[A, T]"""
    tokens: np.ndarray
    """[A, V]"""

    def apply(self, puzzles: np.ndarray) -> np.ndarray:
        """Puzzles [A, T] -> their copies."""
        return np.take_along_axis(self.tokens, np.take_along_axis(puzzles, self.cells, axis=1), axis=1)

    def undo(self, answers: np.ndarray) -> np.ndarray:
        """Answers [A, T] to the copies -> answers to the puzzles."""
        tokens = np.take_along_axis(np.argsort(self.tokens, axis=1), answers, axis=1)
        return np.take_along_axis(tokens, np.argsort(self.cells, axis=1), axis=1)


Draw = Callable[[int, np.random.Generator], Symmetries]


def _sudoku(metadata: PuzzleMetadata) -> Draw | None:
    size = size_of(metadata.seq_len)
    if size is None or metadata.vocab_size != size + 2:
        return None

    def draw(count: int, rng: np.random.Generator) -> Symmetries:
        cells, digits = draw_transforms(count, geometry(size), rng)
        # blank and digit d are the tokens 1 and d + 1; PAD (0) is mapped to itself
        return Symmetries(cells, np.concatenate([np.zeros((count, 1), dtype=digits.dtype), digits + 1], axis=1))

    return draw


def _maze(metadata: PuzzleMetadata) -> Draw:
    side = int(metadata.seq_len**0.5)
    forms = np.stack([form.ravel() for form in symmetric_copies(np.arange(metadata.seq_len).reshape(side, side))])

    def draw(count: int, rng: np.random.Generator) -> Symmetries:
        tokens = np.tile(np.arange(metadata.vocab_size), (count, 1))
        return Symmetries(forms[rng.integers(len(forms), size=count)], tokens)

    return draw


DECLARED: dict[str, Callable[[PuzzleMetadata], Draw | None]] = {
    "dataset.build_sudoku_dataset": _sudoku,
    "dataset.build_maze_dataset": _maze,
}
"""By the `builder` in the card."""


def symmetries_of(root: Path, metadata: PuzzleMetadata) -> Draw | None:
    """A function that draws symmetries of the data set at `root`; None if it declares none."""
    card = read_card(root / CARD) if (root / CARD).exists() else {}
    declared = DECLARED.get(str(card.get("builder")))
    return None if declared is None else declared(metadata)
