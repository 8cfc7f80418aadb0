"""Mazes: is the drawn path the reference one, a path at all, a shortest path?

B rows of a batch, T = S * S cells of a maze.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dataset.format import PuzzleMetadata, PuzzleSplit
from dataset.maze.paths import GOAL, START, VOCAB_SIZE, judge
from engine.distributed import all_reduce_sum
from engine.io import UsageError
from evaluators.intervals import wilson

COLUMNS = ("reference_path", "valid_path", "shortest_path")


def shaped_as_mazes(metadata: PuzzleMetadata) -> bool:
    """Whether a data set has the words and the square grids of mazes."""
    return metadata.vocab_size == VOCAB_SIZE and math.isqrt(metadata.seq_len) ** 2 == metadata.seq_len


def holds_mazes(split: PuzzleSplit) -> bool:
    """Whether it also has one start and one goal in each of its first examples: 4x4 Sudokus are shaped as mazes."""
    if not shaped_as_mazes(split.metadata):
        return False
    first = np.asarray(split.inputs[:64])
    return all(((first == end).sum(axis=1) == 1).all() for end in (START, GOAL))


def grids(tokens: Tensor) -> np.ndarray:
    """[N, S * S] -> [N, S, S] on the host."""
    side = math.isqrt(tokens.shape[1])
    return tokens.cpu().numpy().reshape(-1, side, side)


class ShortestPath:
    """Shares of mazes: `reference_path` is the answer of the data set cell by cell (the published figure),
    `shortest_path` any path of the least length, `valid_path` any path without detours or strays; the latter two with
    the rest of the maze left as it is. A maze can have several shortest paths, of which a data set holds one.

    `shortest_path_low` and `_high` are its 95 % Wilson interval; `mazes` is how many were judged.
    """

    needs_steps: ClassVar[bool] = False

    def __init__(self, config: None = None) -> None:
        self.begin()

    def begin(self, splits: Sequence[Any] = ()) -> None:
        """Forget what was counted. Raises: UsageError where a split does not hold mazes."""
        for split in splits:
            if not holds_mazes(split):
                raise UsageError(
                    f"maze@ShortestPath: {split.root} holds no mazes (python -m dataset.build_maze_dataset)"
                )
        self.sums = torch.zeros(len(COLUMNS) + 1, dtype=torch.float64)

    def update(self, batch: Mapping[str, Tensor], steps: Sequence[Any], preds: Tensor, valid_rows: int) -> None:
        """Judge the first `valid_rows` rows.

        Args:
            batch: inputs [B, T], labels [B, T].
            preds: [at least valid_rows, T]
        """
        inputs, labels, answers = (grids(part[:valid_rows]) for part in (batch["inputs"], batch["labels"], preds))
        real = ((inputs == START) | (inputs == GOAL)).reshape(valid_rows, -1).any(axis=1)  # padding rows have neither
        verdict = judge(inputs, answers)
        same = (answers == labels).reshape(valid_rows, -1).all(axis=1)
        counts = [int((column & real).sum()) for column in (same, verdict.path, verdict.shortest)]
        self.sums += torch.tensor([*counts, int(real.sum())], dtype=torch.float64)

    def result(self) -> dict[str, float | None]:
        """The shares over all ranks, the same on each; None where there was no maze."""
        *counts, mazes = all_reduce_sum(self.sums.clone()).tolist()
        low, high = wilson(counts[-1], mazes)
        shares = {name: count / mazes if mazes else None for name, count in zip(COLUMNS, counts, strict=True)}
        return {**shares, "shortest_path_low": low, "shortest_path_high": high, "mazes": mazes}
