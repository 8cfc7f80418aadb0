"""Grids as token sequences and back: a canvas of C x C tokens, PAD around the grid, EOS below it and to its right.

T = C * C sequence length. Tokens, border and cropping rule are those of the public code (arXiv 2510.04871). Only the
part of the border that is on the canvas is written, below the columns and to the right of the rows; the corner is PAD.
"""

from __future__ import annotations

import math

import numpy as np

from dataset.arc.augment import COLOURS, LARGEST, inside_of

PAD, EOS, FIRST_COLOUR = 0, 1, 2
VOCAB_SIZE = FIRST_COLOUR + COLOURS


def to_tokens(grid: np.ndarray, side: int = LARGEST, row: int = 0, column: int = 0) -> np.ndarray:
    """The tokens of a grid with its first cell at (row, column) of the canvas; uint8 [side * side].

    Raises: ValueError if it does not fit.
    """
    height, width = grid.shape
    bottom, right = row + height, column + width
    if row < 0 or column < 0 or bottom > side or right > side:
        raise ValueError(f"a {height}x{width} grid at ({row}, {column}) does not fit a canvas of {side}x{side}")
    out = np.full((side, side), PAD, dtype=np.uint8)
    out[bottom : bottom + 1, column:right] = EOS
    out[row:bottom, right : right + 1] = EOS
    out[row:bottom, column:right] = grid + FIRST_COLOUR
    return out.reshape(-1)


def side_of(seq_len: int) -> int:
    """The side of a canvas of `seq_len` cells. Raises: ValueError if that is not a square."""
    side = math.isqrt(seq_len)
    if side * side != seq_len:
        raise ValueError(f"{seq_len} tokens are not a square canvas")
    return side


def crop_sizes(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(heights [n], widths [n]) of the grids at the top left of n canvases, tokens [n, T].

    A grid is the rectangle of the largest area in which all tokens are colours; the one with the fewest rows in case of
    a tie, 0 x 0 if there is none.
    """
    side = side_of(tokens.shape[-1])
    colour = ((tokens >= FIRST_COLOUR) & (tokens < VOCAB_SIZE)).reshape(-1, side, side)
    run = np.where(colour.all(axis=2), side, colour.argmin(axis=2))  # colours at the start of each row
    widths = np.minimum.accumulate(run, axis=1)
    areas = widths * np.arange(1, side + 1)
    last = areas.argmax(axis=1)
    rows = np.arange(len(areas))
    return np.where(areas[rows, last] > 0, last + 1, 0), widths[rows, last] * (areas[rows, last] > 0)


def crop_all(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(canvases [n, C, C] padded with zeros, heights [n], widths [n]) of the grids in n sequences [n, T]."""
    heights, widths = crop_sizes(tokens)
    side = side_of(tokens.shape[-1])
    canvases = tokens.reshape(-1, side, side).astype(np.uint8) - np.uint8(FIRST_COLOUR)
    return canvases * inside_of(heights, widths, side), heights, widths


def crop(tokens: np.ndarray) -> np.ndarray:
    """The grid in one sequence [T]; uint8 [h, w], of shape [0, 0] if there is none."""
    canvases, heights, widths = crop_all(tokens[None])
    return canvases[0, : heights[0], : widths[0]]
