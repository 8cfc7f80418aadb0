"""Demonstrations as training examples: everything that can be learned about a task without its answer.

B rows, at most K demonstrations, N existing demonstrations, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.arc.augment import COLOURS, inside_of, transform
from dataset.arc.tokens import EOS, FIRST_COLOUR, PAD, crop_all
from dataset.format import PuzzleSplit

IGNORE = -100
"""Label of a position that is not scored."""
Batch = dict[str, Tensor]
TokenLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, T, V], labels [N, T]) -> [N, T], 0 where not scored."""


@dataclass(frozen=True)
class Pairs:
    """All demonstrations of a batch, each as an input with labels."""

    inputs: Tensor
    """[N, T]"""
    labels: Tensor
    """[N, T], -100 outside the answer and its border."""
    owner: Tensor
    """[N] int64: row of the batch."""

    def concat(self, others: Sequence[Pairs]) -> Pairs:
        """Concatenate with others."""
        parts = [self, *others]
        return Pairs(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Pairs)))


def demonstration_pairs(batch: Mapping[str, Tensor]) -> Pairs:
    """The demonstrations of a batch, ordered by row."""
    mask = batch["demo_mask"]
    labels = batch["demo_labels"][mask]
    return Pairs(batch["demo_inputs"][mask], labels.masked_fill(labels == PAD, IGNORE), mask.nonzero()[:, 0])


def log_likelihood(logits: Tensor, labels: Tensor, token_loss: TokenLoss) -> Tensor:
    """Mean log p [N] over the scored positions of each row; logits [N, T, V], labels [N, T]."""
    scored = (labels != IGNORE).sum(-1).clamp(min=1)
    return -token_loss(logits, labels).sum(-1) / scored


def all_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether all scored positions of a row are correct, [N] bool."""
    return ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(-1)


def leave_one_out(batch: Mapping[str, Tensor]) -> tuple[Batch, Tensor]:
    """Leave-one-out batch: each demonstration as a question with the others as demonstrations.

    Returns a batch of N rows and their rows in `batch` [N]. Rows with a single demonstration are left out.
    """
    mask = batch["demo_mask"] & (batch["demo_mask"].sum(1, keepdim=True) > 1)
    owner, place = mask.nonzero().unbind(1)
    shown = batch["demo_mask"][owner].clone()
    shown[torch.arange(len(owner), device=owner.device), place] = False
    labels = batch["demo_labels"][owner, place]
    out = {name: values[owner] for name, values in batch.items() if isinstance(values, Tensor)}
    out["inputs"] = batch["demo_inputs"][owner, place]
    out["labels"] = labels.masked_fill(labels == PAD, IGNORE)
    out["demo_mask"] = shown
    return out, owner


def select_rows(batch: Mapping[str, Tensor], rows: Tensor) -> Batch:
    """Select rows of a batch, in the given order."""
    return {name: values[rows] for name, values in batch.items()}


def augment(tokens: np.ndarray, tids: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Transform (tids [n]) and recolour (tables [n, 10]) the grids at the top left of n canvases [n, T].

    The results are at the top left too. Canvases without a grid stay blank.
    """
    canvases, heights, widths = transform(*crop_all(tokens), tids)
    side = canvases.shape[-1]
    cells = np.take_along_axis(tables, canvases.reshape(len(tokens), -1).astype(np.int64), axis=1)
    inside = inside_of(heights, widths, side)
    rows, columns = np.arange(side)[:, None], np.arange(side)
    height, width = heights[:, None, None], widths[:, None, None]
    edge = ((rows == height) & (columns < width)) | ((columns == width) & (rows < height))
    out = np.where(inside, cells.reshape(canvases.shape) + FIRST_COLOUR, np.where(edge, EOS, PAD))
    return out.reshape(len(tokens), -1).astype(tokens.dtype)


def augment_pairs(pairs: Pairs, tid: int, table: np.ndarray) -> Pairs:
    """Apply one transform and one recolouring (new colour of each colour, [10]) to all demonstrations."""
    count, device = len(pairs.owner), pairs.inputs.device
    grids = [pairs.inputs, pairs.labels.masked_fill(pairs.labels == IGNORE, PAD)]
    out = [
        torch.from_numpy(augment(grid.cpu().numpy(), np.full(count, tid), np.tile(table, (count, 1)))).to(device)
        for grid in grids
    ]
    return Pairs(out[0], out[1].masked_fill(out[1] == PAD, IGNORE), pairs.owner)


def draw_augmentations(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw (transforms [count], recolourings [count, 10]); the background colour is kept."""
    tables = np.zeros((count, COLOURS), dtype=np.int64)
    tables[:, 1:] = 1 + generator.permuted(np.tile(np.arange(COLOURS - 1), (count, 1)), axis=1)
    return generator.integers(8, size=count), tables


class Originals:
    """Demonstrations of the unaugmented puzzle, the first of its group, of each task of an evaluation."""

    def __init__(self, splits: Sequence[PuzzleSplit]) -> None:
        self.splits = list(splits)
        self._ends = np.cumsum([split.num_groups for split in splits])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def demonstrations(self, groups: np.ndarray) -> dict[str, Any]:
        """demo_inputs, demo_labels [n, K, T] and demo_mask [n, K] of groups [n], as arrays."""
        places = np.searchsorted(self._ends, groups, side="right")
        out: dict[str, np.ndarray] = {}
        for number in np.unique(places):
            split, mine = self.splits[number], places == number
            first = split.group_indices[groups[mine] - (self._ends[number] - split.num_groups)]
            batch = split.batch(split.puzzle_indices[first + 1] - 1)  # the last example of a puzzle is a question
            for name in ("demo_inputs", "demo_labels", "demo_mask"):
                empty = np.zeros((len(groups), *batch[name].shape[1:]), dtype=batch[name].dtype)
                out.setdefault(name, empty)[mine] = batch[name]
        return out
