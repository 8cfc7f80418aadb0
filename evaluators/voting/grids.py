"""Batched ARC grids: decode canvas tokens, undo augmentations, hash grids to keys.

A code is 0 outside the grid and colour + 1 inside, so the codes of a canvas include the extent of its grid.
n rows, C side of the canvas, T = C * C.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataset.arc.augment import grid_keys, inside_of, undo_all
from dataset.arc.tokens import crop_all

_OWNER = np.uint64(0x9E3779B97F4A7C15)  # odd, so the multiples are distinct


def undo_augmentation(tokens: np.ndarray, tids: np.ndarray, tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Undo the augmentation of grids on canvases: codes uint8 [n, T] and keys uint64 [n, 2].

    Args:
        tokens: [n, T]
        tids: dihedral transform of each row [n].
        tables: new colour of each colour [n, 10].
    """
    canvases, heights, widths = undo_all(*crop_all(tokens), tids, tables)
    inside = inside_of(heights, widths, canvases.shape[-1])
    codes = np.where(inside, canvases + 1, 0).astype(np.uint8)
    return codes.reshape(len(codes), -1), grid_keys(canvases, heights, widths)


def add_owner(keys: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Mix owners [n] into keys [n, 2], since two tasks may have the same test grid."""
    mixed = keys.copy()
    mixed[:, 0] ^= owners.astype(np.uint64) * _OWNER
    return mixed


def keys_of(grids: Sequence[Sequence[Sequence[int]]], side: int) -> np.ndarray:
    """Keys of grids given as nested lists, uint64 [n, 2]; grids larger than the canvas get a key that matches none."""
    if not len(grids):
        return np.empty((0, 2), dtype=np.uint64)
    canvases = np.zeros((len(grids), side, side), dtype=np.uint8)
    shapes = np.zeros((len(grids), 2), dtype=np.int64)
    fits = np.ones(len(grids), dtype=bool)
    for number, grid in enumerate(grids):
        cells = np.asarray(grid, dtype=np.uint8).reshape(len(grid), len(grid[0]) if len(grid) else 0)
        fits[number] = max(cells.shape) <= side
        if fits[number]:
            canvases[number, : cells.shape[0], : cells.shape[1]], shapes[number] = cells, cells.shape
    keys = grid_keys(canvases, shapes[:, 0], shapes[:, 1])
    keys[~fits] = ~np.uint64(0)
    return keys


def decode(codes: np.ndarray, side: int) -> list[list[int]]:
    """Decode codes [T] to a grid as nested lists; [] for an empty one."""
    canvas = codes.reshape(side, side)
    height, width = int((canvas[:, 0] > 0).sum()), int((canvas[0] > 0).sum())
    grid: list[list[int]] = (canvas[:height, :width].astype(int) - 1).tolist() if height else []
    return grid
