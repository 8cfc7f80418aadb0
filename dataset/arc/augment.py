"""The symmetries of ARC tasks: eight dihedral transforms and permutations of the colours, as names and on grids.

A grid is uint8 [h, w] with colours 0 to 9. A batch of grids is on canvases [n, C, C], each in the top left corner and
padded with zeros, with heights [n] and widths [n]. Numbers, names and hashes are those of the public builder of
TinyRecursiveModels (arXiv 2510.04871), so its data sets and checkpoints can be read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

SEPARATOR = "|||"
"""Between task, transform and colours in the name of an augmented task."""
COLOURS = 10
LARGEST = 30
"""Side of the largest grid, and of the public canvas."""

# Cell (i, j) of the result is read at (r, c): (i, j) swapped if SWAPS, then counted from the last row or column.
# 0 identity, 1 to 3 quarter turns left, 4 left-right, 5 up-down, 6 transposed, 7 transposed along the other diagonal
SWAPS   = np.array([0, 1, 0, 1, 0, 0, 1, 1], dtype=bool)  # fmt: skip
_FLIP_R = np.array([0, 0, 1, 1, 0, 1, 0, 1], dtype=bool)  # fmt: skip
_FLIP_C = np.array([0, 1, 1, 0, 1, 0, 0, 1], dtype=bool)  # fmt: skip
INVERSE = np.array([0, 3, 2, 1, 4, 5, 6, 7], dtype=np.uint8)
"""The inverse of each transform."""


def dihedral(grid: np.ndarray, tid: int) -> np.ndarray:
    """Transform `tid` (0 to 7) of a grid [..., h, w]; a view."""
    out = grid
    if _FLIP_R[tid]:
        out = out[..., ::-1, :]
    if _FLIP_C[tid]:
        out = out[..., ::-1]
    return out.swapaxes(-1, -2) if SWAPS[tid] else out


def inverse_dihedral(grid: np.ndarray, tid: int) -> np.ndarray:
    """Undo transform `tid` of a grid [..., h, w]; a view."""
    return dihedral(grid, int(INVERSE[tid]))


@dataclass(frozen=True)
class Augmentation:
    """A dihedral transform and a permutation of the colours (drawn ones keep the background 0)."""

    tid: int = 0
    colours: str = "0123456789"
    """Digit j is the new colour of colour j."""

    def __post_init__(self) -> None:
        if not 0 <= self.tid < 8 or sorted(self.colours) != list("0123456789"):
            raise ValueError(
                f"t{self.tid}{SEPARATOR}{self.colours}: expected t0 to t7 and the ten digits in some order"
            )

    @cached_property
    def table(self) -> np.ndarray:
        """The new colour of each colour; uint8 [10]."""
        return np.frombuffer(self.colours.encode(), dtype=np.uint8) - ord("0")

    @cached_property
    def inverse_table(self) -> np.ndarray:
        """The old colour of each new colour; uint8 [10]."""
        return np.argsort(self.table).astype(np.uint8)

    def name(self, task: str) -> str:
        """`task|||t3|||0918273645`. The original task has no suffix, so IDENTITY.name(task) is not its name."""
        return f"{task}{SEPARATOR}t{self.tid}{SEPARATOR}{self.colours}"

    def apply(self, grid: np.ndarray) -> np.ndarray:
        """The augmented grid."""
        return dihedral(self.table[grid], self.tid)

    def undo(self, grid: np.ndarray) -> np.ndarray:
        """The grid that was augmented."""
        return self.inverse_table[inverse_dihedral(grid, self.tid)]


IDENTITY = Augmentation()


@lru_cache(maxsize=1 << 16)
def parse_name(name: str) -> tuple[str, Augmentation]:
    """(task, augmentation) of a name in identifiers.json. Raises: ValueError for one of another form."""
    parts = name.split(SEPARATOR)
    if len(parts) == 1:
        return name, IDENTITY
    if len(parts) != 3 or parts[1][:1] != "t" or not parts[1][1:].isdecimal():
        raise ValueError(f"{name!r}: expected TASK or TASK{SEPARATOR}t3{SEPARATOR}0918273645")
    return parts[0], Augmentation(int(parts[1][1:]), parts[2])


def transform(
    canvases: np.ndarray, heights: np.ndarray, widths: np.ndarray, tids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(canvases, heights, widths) of n grids, grid i under transform tids[i]; `INVERSE[tids]` undoes it."""
    line = np.arange(canvases.shape[-1])

    def source(sizes: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        # Positions outside the grid map to themselves: they are padding.
        size = np.asarray(sizes)[:, None]
        return np.where(flipped[:, None] & (line < size), size - 1 - line, line)

    rows, columns = source(heights, _FLIP_R[tids]), source(widths, _FLIP_C[tids])
    out = canvases[np.arange(len(canvases))[:, None, None], rows[:, :, None], columns[:, None, :]]
    swapped = SWAPS[tids]
    out[swapped] = out[swapped].swapaxes(-1, -2)
    return out, np.where(swapped, widths, heights), np.where(swapped, heights, widths)


def undo_all(
    canvases: np.ndarray, heights: np.ndarray, widths: np.ndarray, tids: np.ndarray, tables: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Undo the augmentations of n grids: (canvases, heights, widths) of the originals.

    tids [n] are the transforms, tables [n, 10] the new colour of each colour (`Augmentation.table`).
    """
    out, new_heights, new_widths = transform(canvases, heights, widths, INVERSE[tids])
    old = np.argsort(tables, axis=1).astype(canvases.dtype)
    side = out.shape[-1]
    index = out.reshape(len(out), side * side) + np.arange(0, old.size, COLOURS)[:, None]  # into the flattened tables
    out = old.reshape(-1)[index].reshape(out.shape) * inside_of(new_heights, new_widths, side)
    return out, new_heights, new_widths


def inside_of(heights: np.ndarray, widths: np.ndarray, side: int) -> np.ndarray:
    """Which cells belong to each grid; bool [n, side, side]."""
    steps = np.arange(side)
    return (steps[:, None] < heights[:, None, None]) & (steps < widths[:, None, None])


def grid_hash(grid: np.ndarray) -> str:
    """Hex sha256 of a byte for the height, a byte for the width, and the cells, as in the public code."""
    return hashlib.sha256(bytes(grid.shape) + np.ascontiguousarray(grid, dtype=np.uint8).tobytes()).hexdigest()


@lru_cache(maxsize=1)
def _multipliers() -> np.ndarray:
    """Two random 64-bit multipliers for every cell: uint64 [30, 30, 2]."""
    generator = np.random.Generator(np.random.Philox(2510_04871))
    return generator.integers(1 << 64, size=(LARGEST, LARGEST, 2), dtype=np.uint64)


def grid_keys(canvases: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """128-bit hashes of n grids with their shapes; uint64 [n, 2], the same on every machine and canvas.

    Two multilinear hashes: sums mod 2^64 over the cells of (colour + 1) times the cell's random multiplier. Codes
    differ by at most 10 < 2^4, so each hash collides with a chance below 2^-60 (Thorup, "High speed hashing", arXiv
    1504.06804).
    """
    side = canvases.shape[-1]
    codes = (canvases + np.uint8(1)) * inside_of(heights, widths, side)
    multipliers = _multipliers()[:side, :side].reshape(-1, 2)
    keys: np.ndarray = codes.reshape(len(codes), side * side).astype(np.uint64) @ multipliers
    return keys
