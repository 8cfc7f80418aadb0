"""Compact storage: grids, augmentations and offsets of the examples, expanded into tokens when they are read.

With "storage": "compact" in dataset.json, these files take the place of inputs and labels:

    <set>__cells.npy          uint8 [K]        the cells of all grids, input and output of each pair in turn
    <set>__shapes.npy         uint8 [2 E, 2]   rows and columns of each grid
    <set>__augmentations.npy  uint8 [P, 5]     transform and new colours of the colours 1 to 9, four bits each
    <set>__offsets.npy        uint8 [N, 2]     row and column of the first cell of each example

All puzzles of a group have the same pairs, in the same order. The full ARC-AGI-1 set takes 7 GB as token arrays and
55 MB in this form. N examples, P puzzles, E pairs, K cells, T sequence length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.arc.augment import COLOURS, SWAPS
from dataset.arc.expand import Expander
from dataset.arc.tokens import VOCAB_SIZE, side_of
from dataset.metadata import save_array
from engine.io import UsageError

BLOCK = 1024
"""Rows expanded at once by iteration over all."""


@dataclass(eq=False)
class ExpandedRows:
    """Inputs or labels of a split: acts as an array uint8 [N, T] whose rows are expanded on access."""

    source: Expander
    labels: bool

    def __len__(self) -> int:
        return len(self.source.offsets)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.source.length

    @property
    def size(self) -> int:
        return len(self) * self.source.length

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """One row [T], or the rows [n, T] of a slice, an index array or a mask."""
        numbers = np.arange(len(self))[rows]
        out = self.source.rows(np.atleast_1d(numbers), labels=self.labels)
        return out if numbers.ndim else out[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self), BLOCK):
            yield from self[first : first + BLOCK]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype)


def pack(augmentations: np.ndarray) -> np.ndarray:
    """Pack [P, 10] into [P, 5]: two numbers per byte."""
    return augmentations[:, 0::2] << 4 | augmentations[:, 1::2]


def unpack(packed: np.ndarray) -> np.ndarray:
    """Undo `pack`: [P, 5] -> [P, 10]."""
    return np.stack([packed >> 4, packed & 15], axis=2).reshape(-1, 2 * packed.shape[1])


def save_compact(source: Expander, folder: Path, name: str) -> None:
    """Write the four arrays of the set `name`."""
    arrays = {
        "cells": source.cells,
        "shapes": source.shapes,
        "augmentations": pack(source.augmentations),
        "offsets": source.offsets,
    }
    for array, values in arrays.items():
        save_array(folder / f"{name}__{array}.npy", values)


def open_compact(
    folder: Path,
    name: str,
    load: Callable[[Path, int], np.ndarray],
    *,
    seq_len: int,
    vocab_size: int,
    puzzle_indices: np.ndarray,
    group_indices: np.ndarray,
) -> tuple[ExpandedRows, ExpandedRows]:
    """Open inputs and labels of the set `name`, checked so that every row expands to valid tokens on the canvas.

    `load(path, ndim)` reads one array. Raises: UsageError naming the file.
    """
    path = {array: folder / f"{name}__{array}.npy" for array in ("cells", "shapes", "augmentations", "offsets")}
    cells, shapes = load(path["cells"], 1), load(path["shapes"], 2)
    packed, offsets = load(path["augmentations"], 2), load(path["offsets"], 2)

    def need(condition: object, array: str, text: str) -> None:
        if not condition:
            raise UsageError(f"{path[array]}: {text}")

    need(
        all(a.dtype == np.uint8 for a in (cells, shapes, packed, offsets)), "cells", "expected bytes in all four arrays"
    )
    try:
        side = side_of(seq_len)
    except ValueError as error:
        raise UsageError(f"{folder / 'dataset.json'}: {error}") from None
    need(vocab_size == VOCAB_SIZE, "cells", f"grids have {VOCAB_SIZE} tokens, dataset.json says {vocab_size}")
    need(shapes.shape[1] == 2 and len(shapes) % 2 == 0, "shapes", "expected two grids a pair, rows and columns of each")
    need(
        not len(shapes) or (shapes.min() >= 1 and shapes.max() <= side), "shapes", f"grids must be 1x1 to {side}x{side}"
    )
    need(
        len(cells) == shapes.astype(np.int64).prod(axis=1).sum(), "cells", "the shapes give a different number of cells"
    )
    need(not len(cells) or cells.max() < COLOURS, "cells", f"a colour is beyond {COLOURS - 1}")
    sizes = np.diff(puzzle_indices)
    owners = np.repeat(np.arange(len(group_indices) - 1), np.diff(group_indices))
    equal = (sizes == sizes[group_indices[:-1]][owners]).all() if len(sizes) else True
    need(equal, "shapes", "the puzzles of a group differ in their number of examples")
    need(
        sizes[group_indices[:-1]].sum() * 2 == len(shapes), "shapes", "a different number of pairs than the groups have"
    )
    need(packed.shape == (len(sizes), 5), "augmentations", f"expected shape [{len(sizes)}, 5], found {packed.shape}")
    augmentations = unpack(packed)
    need((augmentations[:, 0] < len(SWAPS)).all(), "augmentations", f"a transform is beyond {len(SWAPS) - 1}")
    permuted = np.sort(augmentations[:, 1:], axis=1) == np.arange(1, COLOURS)
    need(permuted.all(), "augmentations", "a row is not a permutation of the colours 1 to 9")
    need(offsets.shape == (puzzle_indices[-1], 2), "offsets", f"expected shape [{puzzle_indices[-1]}, 2]")
    source = Expander(side, cells, shapes, augmentations, offsets, puzzle_indices, group_indices)
    need((source.ends() <= side).all(), "offsets", f"an example lies beyond the canvas of {side}x{side}")
    return ExpandedRows(source, labels=False), ExpandedRows(source, labels=True)
