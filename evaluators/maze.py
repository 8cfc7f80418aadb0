"""Evaluate mazes: does the answer equal the reference path, is it a valid path, is it a shortest path?

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


def has_maze_format(metadata: PuzzleMetadata) -> bool:
    """Whether a data set has the vocabulary and square grids of mazes."""
    return metadata.vocab_size == VOCAB_SIZE and math.isqrt(metadata.seq_len) ** 2 == metadata.seq_len


def holds_mazes(split: PuzzleSplit) -> bool:
    """Whether the first examples also have exactly one start and one goal, since 4x4 Sudokus have the same format."""
    if not has_maze_format(split.metadata):
        return False
    first = np.asarray(split.inputs[:64])
    return all(((first == end).sum(axis=1) == 1).all() for end in (START, GOAL))


def grids(tokens: Tensor) -> np.ndarray:
    """Reshape tokens [N, S * S] to grids [N, S, S], on the host."""
    side = math.isqrt(tokens.shape[1])
    return tokens.cpu().numpy().reshape(-1, side, side)


class ShortestPath:
    """Shares of mazes: `reference_path` equals the label in every cell (the published metric), `shortest_path` is any
    path of minimal length, `valid_path` any path without detours or stray cells; the latter two must leave the rest of
    the maze unchanged. A maze can have several shortest paths, of which the data set stores one.

    `shortest_path_low` and `_high` are its 95 % Wilson interval; `mazes` is the number of mazes.
    """

    needs_steps: ClassVar[bool] = False

    def __init__(self, config: None = None) -> None:
        self.begin()

    def begin(self, splits: Sequence[Any] = ()) -> None:
        """Reset the counts. Raises: UsageError if a split does not contain mazes."""
        for split in splits:
            if not holds_mazes(split):
                raise UsageError(
                    f"maze@ShortestPath: {split.root} holds no mazes (python -m dataset.build_maze_dataset)"
                )
        self.sums = torch.zeros(len(COLUMNS) + 1, dtype=torch.float64)

    def update(self, batch: Mapping[str, Tensor], steps: Sequence[Any], preds: Tensor, valid_rows: int) -> None:
        """Count the first `valid_rows` rows.

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
        """The shares over all ranks, the same on each; None if there were no mazes."""
        *counts, mazes = all_reduce_sum(self.sums.clone()).tolist()
        low, high = wilson(counts[-1], mazes)
        shares = {name: count / mazes if mazes else None for name, count in zip(COLUMNS, counts, strict=True)}
        return {**shares, "shortest_path_low": low, "shortest_path_high": high, "mazes": mazes}
