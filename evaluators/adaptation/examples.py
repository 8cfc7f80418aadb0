"""The demonstrations of a batch as examples of their own: what can be learned of a task without its answer.

B rows, K demonstrations at most, N demonstrations that exist, T tokens.
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
    """All demonstrations of a batch, each as a question with its answer."""

    inputs: Tensor
    """[N, T]"""
    labels: Tensor
    """[N, T], -100 outside of the answer and its border."""
    owner: Tensor
    """[N] int64: the row of the batch."""

    def joined(self, others: Sequence[Pairs]) -> Pairs:
        """These, and the others behind them."""
        every = [self, *others]
        return Pairs(*(torch.cat([getattr(one, field.name) for one in every]) for field in fields(Pairs)))


def pairs_of(batch: Mapping[str, Tensor]) -> Pairs:
    """The demonstrations of a batch, row by row."""
    mask = batch["demo_mask"]
    labels = batch["demo_labels"][mask]
    return Pairs(batch["demo_inputs"][mask], labels.masked_fill(labels == PAD, IGNORE), mask.nonzero()[:, 0])


def log_likelihood(logits: Tensor, labels: Tensor, token_loss: TokenLoss) -> Tensor:
    """Mean log p of the scored positions of each row, [N]: logits [N, T, V], labels [N, T]."""
    scored = (labels != IGNORE).sum(-1).clamp(min=1)
    return -token_loss(logits, labels).sum(-1) / scored


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether every scored position is right, [N] bool."""
    return ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(-1)


def leave_one_out(batch: Mapping[str, Tensor]) -> tuple[Batch, Tensor]:
    """Every demonstration as a question that is shown the others: a batch of N rows, and their rows in `batch` [N].

    Rows with a single demonstration give none: there is nothing to show.
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


def rows_of(batch: Mapping[str, Tensor], rows: Tensor) -> Batch:
    """Some rows of a batch, in this order."""
    return {name: values[rows] for name, values in batch.items()}


def augmented(tokens: np.ndarray, tids: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Grids at the top left of n canvases [n, T], transformed (tids [n]) and recoloured (tables [n, 10]), likewise.

    Canvases without a grid stay blank.
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


def changed(pairs: Pairs, tid: int, table: np.ndarray) -> Pairs:
    """The same demonstrations under one transform and one new colour of each colour [10]."""
    count, device = len(pairs.owner), pairs.inputs.device
    grids = [pairs.inputs, pairs.labels.masked_fill(pairs.labels == IGNORE, PAD)]
    out = [
        torch.from_numpy(augmented(grid.cpu().numpy(), np.full(count, tid), np.tile(table, (count, 1)))).to(device)
        for grid in grids
    ]
    return Pairs(out[0], out[1].masked_fill(out[1] == PAD, IGNORE), pairs.owner)


def draw_augmentations(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(transforms [count], new colour of each colour [count, 10]); the background stays."""
    tables = np.zeros((count, COLOURS), dtype=np.int64)
    tables[:, 1:] = 1 + generator.permuted(np.tile(np.arange(COLOURS - 1), (count, 1)), axis=1)
    return generator.integers(8, size=count), tables


class Originals:
    """The demonstrations of the first puzzle (the task as it is) of each group of an evaluation."""

    def __init__(self, splits: Sequence[PuzzleSplit]) -> None:
        self.splits = list(splits)
        self._ends = np.cumsum([split.num_groups for split in splits])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def shown(self, groups: np.ndarray) -> dict[str, Any]:
        """demo_inputs, demo_labels [n, K, T] and demo_mask [n, K] of these groups [n], as arrays."""
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
