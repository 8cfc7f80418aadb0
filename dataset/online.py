"""Augmentation during training: every example of a batch is replaced by a random symmetric copy.

B rows of the global batch, T sequence length, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataset.format import PuzzleSplit
from dataset.metadata import IGNORE
from dataset.symmetries import Draw, symmetries_of
from engine.io import UsageError


class OnlineCopies:
    """Draws from the symmetries of the `train` splits, but no copy whose answer is that of a `test` example.

    Raises: UsageError if a training set declares no symmetries.
    """

    def __init__(self, train: Sequence[PuzzleSplit], test: Sequence[PuzzleSplit]) -> None:
        draws = [(split, symmetries_of(split.root, split.metadata)) for split in train]
        if bare := next((split for split, draw in draws if draw is None), None):
            raise UsageError(
                f"online_augmentation=true: {bare.root} declares no symmetries (Sudoku and maze sets do): set it to "
                "false"
            )
        declared: list[Draw] = [draw for _, draw in draws if draw is not None]
        self.draw = declared[0]  # sets that agree in length and vocabulary have the same symmetries
        self.forbidden = {
            answer.tobytes() for split in test for answer in split.rows(np.arange(split.num_examples))["labels"]
        }

    def apply(
        self, rows: dict[str, np.ndarray], total: int, low: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Copies of the rows `low`, `low` + 1, … of a global batch of `total` rows; `rng` alone decides which ones."""
        drawn = self.draw(total, rng)
        cells, tokens = (part[low : low + len(rows["inputs"])] for part in (drawn.cells, drawn.tokens))
        inputs, labels = (np.take_along_axis(rows[name], cells, axis=1) for name in ("inputs", "labels"))
        scored = labels != IGNORE
        inputs = np.take_along_axis(tokens, inputs, axis=1).astype(inputs.dtype)
        labels = np.where(
            scored, np.take_along_axis(tokens, np.where(scored, labels, 0), axis=1).astype(labels.dtype), labels
        )
        allowed = np.array([answer.tobytes() not in self.forbidden for answer in labels])[:, None]
        return {
            **rows,
            "inputs": np.where(allowed, inputs, rows["inputs"]),
            "labels": np.where(allowed, labels, rows["labels"]),
        }
