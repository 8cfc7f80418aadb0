"""ARC grids one at a time: what the batched functions of dataset/arc/ have to agree with."""

from __future__ import annotations

import hashlib

import numpy as np

from dataset.arc.augment import INVERSE, LARGEST, Augmentation, dihedral
from dataset.arc.tokens import EOS, FIRST_COLOUR, PAD, crop_all


def to_tokens(grid: np.ndarray, side: int = LARGEST, row: int = 0, column: int = 0) -> np.ndarray:
    """The tokens of a grid with its first cell at (row, column) of the canvas; uint8 [side * side]."""
    bottom, right = row + grid.shape[0], column + grid.shape[1]
    out = np.full((side, side), PAD, dtype=np.uint8)
    out[bottom : bottom + 1, column:right] = EOS
    out[row:bottom, right : right + 1] = EOS
    out[row:bottom, column:right] = grid + FIRST_COLOUR
    return out.reshape(-1)


def crop(tokens: np.ndarray) -> np.ndarray:
    """The grid in one sequence [T]; uint8 [h, w], of shape [0, 0] if there is none."""
    canvases, heights, widths = crop_all(tokens[None])
    return canvases[0, : heights[0], : widths[0]]


def undo(augmentation: Augmentation, grid: np.ndarray) -> np.ndarray:
    """The grid that was augmented."""
    return np.argsort(augmentation.table).astype(np.uint8)[dihedral(grid, int(INVERSE[augmentation.tid]))]


def grid_hash(grid: np.ndarray) -> str:
    """Hex sha256 of a byte for the height, a byte for the width, and the cells, as in the public code."""
    return hashlib.sha256(bytes(grid.shape) + np.ascontiguousarray(grid, dtype=np.uint8).tobytes()).hexdigest()
