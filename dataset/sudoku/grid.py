"""The geometry of a Sudoku board and its tokens.

A board is row-major with n * n cells, 0 for a blank and 1 to n for digits. Boxes are h rows by w columns with
h * w = n: 2x2 on 4x4, 2x3 (two rows, three columns) on 6x6, 3x3 on 9x9. Tokens: PAD 0, blank 1, digit d -> d + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from engine.io import UsageError

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
PAD, BLANK = 0, 1


@dataclass(frozen=True)
class Geometry:
    """Units and peers of a board of `size` x `size` cells."""

    size: int
    box_height: int
    box_width: int
    units: tuple[tuple[int, ...], ...]
    """Rows, then columns, then boxes, of `size` cells each."""
    peers: tuple[tuple[int, ...], ...]
    """The other cells of each cell's three units."""

    @property
    def cells(self) -> int:
        """Number of cells = sequence length."""
        return self.size * self.size

    @property
    def full(self) -> int:
        """Bit mask with one bit for each digit (bit d - 1 stands for digit d)."""
        return (1 << self.size) - 1

    @property
    def vocab_size(self) -> int:
        """PAD, blank and the digits."""
        return self.size + 2


@cache
def geometry(size: int) -> Geometry:
    """The geometry of a board of `size`. Raises: UsageError for a size without a box shape."""
    if size not in BOXES:
        raise UsageError(f"--size {size} is not known: choose one of {', '.join(map(str, BOXES))}")
    height, width = BOXES[size]
    cells = np.arange(size * size).reshape(size, size)
    boxes = cells.reshape(size // height, height, size // width, width).swapaxes(1, 2).reshape(size, size)
    units = tuple(tuple(int(c) for c in unit) for block in (cells, cells.T, boxes) for unit in block)
    peers = []
    for cell in range(size * size):
        seen = {other for unit in units if cell in unit for other in unit}
        peers.append(tuple(sorted(seen - {cell})))
    return Geometry(size, height, width, units, tuple(peers))


def size_of(cells: int) -> int | None:
    """The board size that has `cells` cells; None if there is none."""
    return next((size for size in BOXES if size * size == cells), None)


def valid_solutions(boards: np.ndarray, geo: Geometry) -> np.ndarray:
    """Which of the boards [N, cells] are completely and correctly filled; bool [N]."""
    boards = np.asarray(boards)
    in_range = ((boards >= 1) & (boards <= geo.size)).all(axis=1)
    bits = np.left_shift(np.int32(1), np.clip(boards.astype(np.int32), 1, geo.size) - 1)
    seen = np.bitwise_or.reduce(bits[:, np.array(geo.units)], axis=2)  # [N, units]
    return in_range & (seen == geo.full).all(axis=1)


@cache
def all_grids(size: int) -> np.ndarray:
    """Every filled board in ascending order, uint8 [count, cells]: 288 of size 4. Raises: ValueError if larger."""
    geo = geometry(size)
    if size > 4:
        raise ValueError(f"there are too many boards of size {size} to list")
    boards: list[list[int]] = []
    board = [0] * geo.cells

    def fill(cell: int) -> None:
        if cell == geo.cells:
            boards.append(board.copy())
            return
        for digit in range(1, size + 1):
            if all(board[peer] != digit for peer in geo.peers[cell]):
                board[cell] = digit
                fill(cell + 1)
        board[cell] = 0

    fill(0)
    return np.array(boards, dtype=np.uint8)
