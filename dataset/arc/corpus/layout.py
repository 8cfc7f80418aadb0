"""Task families that change colours, places and sizes. Each docstring is the rule that the demonstrations show."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from dataset.arc.augment import COLOURS, dihedral
from dataset.arc.corpus.parts import Example, Rule, box, colours, empty, scattered, sides


def recolour(g: Generator, s: int) -> Rule:
    """One colour becomes another."""
    old, new, *others = colours(g, 4)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 3, s), [old, *others])
        return grid, np.where(grid == old, new, grid)

    return rule


def exchange(g: Generator, s: int) -> Rule:
    """Two colours are exchanged."""
    first, second, other = colours(g, 3)
    table = np.arange(COLOURS, dtype=np.uint8)
    table[[first, second]] = second, first

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 3, s), [first, second, other])
        return grid, table[grid]

    return rule


def keep(g: Generator, s: int) -> Rule:
    """Only one colour is kept."""
    kept, *others = colours(g, 4)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 3, s), [kept, *others], 0.6)
        return grid, np.where(grid == kept, grid, 0)

    return rule


def negative(g: Generator, s: int) -> Rule:
    """Background and figure are exchanged."""
    (colour,) = colours(g, 1)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 3, s), [colour])
        return grid, np.where(grid == 0, colour, 0)

    return rule


def chequered(g: Generator, s: int) -> Rule:
    """Every second cell of a rectangle gets another colour."""
    first, second = colours(g, 2)

    def rule(g: Generator) -> Example:
        grid = empty(*sides(g, 4, s))
        place = box(g, grid.shape, 2)
        grid[place] = first
        out = grid.copy()
        out[place][np.add.outer(*map(np.arange, grid[place].shape)) % 2 == 1] = second
        return grid, out

    return rule


def most_frequent(g: Generator, s: int) -> Rule:
    """The answer is one cell of the colour that occurs most often."""
    palette = colours(g, 4)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 3, s), palette, 0.9)
        counts = np.bincount(grid.ravel(), minlength=COLOURS)[1:]
        winner = int(counts.argmax()) + 1
        grid[np.unravel_index(np.flatnonzero(grid != winner)[:2], grid.shape)] = winner  # no ties
        return grid, empty(1, 1, winner)

    return rule


# --- place and size ---------------------------------------------------------------------------------------------------


def turned(g: Generator, s: int) -> Rule:
    """Turned or mirrored in one of the seven ways."""
    tid, palette = int(g.integers(1, 8)), colours(g, 3)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 3, s), palette)
        return grid, dihedral(grid, tid).copy()

    return rule


def shifted(g: Generator, s: int) -> Rule:
    """Moved along one axis; what leaves at one edge enters at the other."""
    axis, by, palette = int(g.integers(2)), int(g.integers(1, 3)), colours(g, 2)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 4, s), palette, 0.4)
        return grid, np.roll(grid, by, axis)

    return rule


def gravity(g: Generator, s: int) -> Rule:
    """Cells fall to one edge and keep their order."""
    tid, palette = int(g.integers(4)), colours(g, 3)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 3, s), palette, 0.35)
        upright = dihedral(grid, tid)
        fallen = np.take_along_axis(upright, np.argsort(upright != 0, axis=0, kind="stable"), axis=0)
        return grid, dihedral(fallen, (4 - tid) % 4).copy()

    return rule


def enlarged(g: Generator, s: int) -> Rule:
    """Every cell becomes a block."""
    factor, palette = int(g.integers(2, 4)), colours(g, 3)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 2, s // factor), palette, 0.6)
        return grid, np.kron(grid, empty(factor, factor, 1))

    return rule


def reduced(g: Generator, s: int) -> Rule:
    """Every block becomes a cell."""
    larger = enlarged(g, s)
    return lambda g: larger(g)[::-1]


def repeated(g: Generator, s: int) -> Rule:
    """The grid and a copy to its right or below it, mirrored or not."""
    axis, mirrored, palette = int(g.integers(2)), bool(g.integers(2)), colours(g, 3)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 2, s // 2), palette, 0.6)
        return grid, np.concatenate([grid, np.flip(grid, axis) if mirrored else grid], axis)

    return rule


def cut_out(g: Generator, s: int) -> Rule:
    """The bounding box of the coloured cells."""
    palette = colours(g, 3)

    def rule(g: Generator) -> Example:
        grid = empty(*sides(g, 4, s))
        place = box(g, grid.shape, 2)
        height, width = grid[place].shape
        grid[place] = scattered(g, height, width, palette, 0.8)
        grid[place][0, 0] = grid[place][-1, -1] = palette[0]
        return grid, grid[place].copy()

    return rule


def framed(g: Generator, s: int) -> Rule:
    """A frame is added around the grid."""
    frame, *palette = colours(g, 4)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 2, s - 2), palette, 0.6)
        return grid, np.pad(grid, 1, constant_values=frame)

    return rule


def edged(g: Generator, s: int) -> Rule:
    """The outermost cells get one colour."""
    edge, *palette = colours(g, 4)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 4, s), palette)
        return grid, np.pad(grid[1:-1, 1:-1], 1, constant_values=edge)

    return rule
