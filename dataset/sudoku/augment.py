"""Augmentation of a Sudoku, all copies of one puzzle at once.

A copy relabels the digits, permutes the bands and the rows within each, the stacks and the columns within each, and on
boards with square boxes is transposed half of the time. A transposed board would break 2x3 boxes, so 6x6 boards are
never transposed. Puzzle and solution get the same transform.

A copies, n board size, C = n * n cells.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from dataset.sudoku.grid import Geometry
from engine.io import UsageError

REDRAWS = 200


def _permutations(count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """`count` independent permutations of 0 to length - 1; [count, length]."""
    return rng.permuted(np.tile(np.arange(length), (count, 1)), axis=1)


def _lines(count: int, size: int, band: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffle bands of `band` lines and the lines within each: old line of each new line; [count, size]."""
    bands = size // band
    order = _permutations(count, bands, rng)
    inside = _permutations(count * bands, band, rng).reshape(count, bands, band)
    return (order[:, :, None] * band + inside).reshape(count, size)


def draw_transforms(count: int, geo: Geometry, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` symmetries: (old cell of each new cell [A, C], new digit of each old digit [A, n + 1])."""
    n = geo.size
    digits = np.concatenate([np.zeros((count, 1), dtype=np.int64), _permutations(count, n, rng) + 1], axis=1)
    transpose = (rng.random(count) < 0.5) & (geo.box_height == geo.box_width)
    rows = _lines(count, n, geo.box_height, rng)[:, :, None]
    columns = _lines(count, n, geo.box_width, rng)[:, None, :]
    cells = np.where(transpose[:, None, None], columns * n + rows, rows * n + columns)
    return cells.reshape(count, geo.cells), digits


def apply_transforms(board: np.ndarray, cells: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """The board [C] under each transform; uint8 [A, C]."""
    return np.take_along_axis(digits, board[cells].astype(np.int64), axis=1).astype(np.uint8)


def augment(
    question: np.ndarray,
    answer: np.ndarray,
    count: int,
    geo: Geometry,
    rng: np.random.Generator,
    forbidden: Container[bytes] = frozenset(),
) -> tuple[np.ndarray, np.ndarray]:
    """The original followed by `count` copies: (questions, answers), each uint8 [1 + A, C].

    A copy whose solution is in `forbidden` (a test solution) is drawn again.

    Raises: UsageError if a copy is still forbidden after REDRAWS draws.
    """
    cells, digits = draw_transforms(count, geo, rng)
    answers = apply_transforms(answer, cells, digits)
    bad = np.array([row.tobytes() in forbidden for row in answers], dtype=bool)
    for _ in range(REDRAWS):
        if not bad.any():
            break
        cells[bad], digits[bad] = draw_transforms(int(bad.sum()), geo, rng)
        answers[bad] = apply_transforms(answer, cells[bad], digits[bad])
        bad[bad] = [row.tobytes() in forbidden for row in answers[bad]]
    else:
        raise UsageError(
            f"nearly every symmetric copy of a {geo.size}x{geo.size} training puzzle has the solution of a "
            "test puzzle: "
            "lower --num-test or --num-aug"
        )
    questions = apply_transforms(question, cells, digits)
    return np.concatenate([question[None], questions]), np.concatenate([answer[None], answers])
