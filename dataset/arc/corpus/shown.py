"""Task families whose answers cannot be guessed: only the demonstrations show the colours of the answer.

They measure whether a model reads its demonstrations at all. Each docstring is the rule that the demonstrations show.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from dataset.arc.augment import COLOURS
from dataset.arc.corpus.parts import Example, Grid, Rule, colours, scattered, sides


def permuted(g: Generator, s: int) -> Rule:
    """Three colours become three others."""
    old, new = colours(g, 3), colours(g, 3)
    table = np.arange(COLOURS, dtype=np.uint8)
    table[old] = new

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 3, s), old)
        return grid, table[grid]

    return rule


def striped(g: Generator, s: int) -> Rule:
    """Coloured cells get one colour in every second row, another in the rows between."""
    cell, *stripes = colours(g, 3)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 3, s), [cell])
        rows = np.array(stripes, dtype=np.uint8)[np.arange(len(grid)) % 2, None]
        return grid, np.where(grid != 0, rows, 0).astype(np.uint8)

    return rule


def bordered(g: Generator, s: int) -> Rule:
    """The first and last row get one colour, the first and last column between them another."""
    rows, columns, *palette = colours(g, 4)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 4, s), palette)
        out = grid.copy()
        out[:, [0, -1]], out[[0, -1]] = columns, rows
        return grid, out

    return rule


def grounded(g: Generator, s: int) -> Rule:
    """The background becomes a chequer of two colours."""
    first, second, *palette = colours(g, 4)

    def rule(g: Generator) -> Example:
        grid = scattered(g, *sides(g, 3, s), palette)
        chequer = np.where(np.add.outer(*map(np.arange, grid.shape)) % 2 == 0, first, second)
        return grid, np.where(grid == 0, chequer, grid).astype(np.uint8)

    return rule


def _marked(g: Generator, s: int, mark: int, others: list[int]) -> tuple[Grid, int, int]:
    """A sparse grid with one marked cell outside the last row and column, and its row and column."""
    grid = scattered(g, *sides(g, 4, s), others, 0.25)
    row, column = (int(g.integers(size - 1)) for size in grid.shape)
    grid[row, column] = mark
    return grid, row, column


def stamped(g: Generator, s: int) -> Rule:
    """A pattern of 2x2 cells is written over the grid, its top left corner at the marked cell."""
    (mark, *others), pattern = colours(g, 3), np.array(colours(g, 4), dtype=np.uint8).reshape(2, 2)

    def rule(g: Generator) -> Example:
        grid, row, column = _marked(g, s, mark, others)
        out = grid.copy()
        out[row : row + 2, column : column + 2] = pattern
        return grid, out

    return rule


def targeted(g: Generator, s: int) -> Rule:
    """The row of the marked cell gets one colour, its column another; the cell is kept."""
    mark, rows, columns, *others = colours(g, 5)

    def rule(g: Generator) -> Example:
        grid, row, column = _marked(g, s, mark, others)
        out = grid.copy()
        out[row], out[:, column] = rows, columns
        out[row, column] = mark
        return grid, out

    return rule


def ringed(g: Generator, s: int) -> Rule:
    """The cells around the marked one get a colour."""
    mark, ring, *others = colours(g, 4)

    def rule(g: Generator) -> Example:
        grid, row, column = _marked(g, s, mark, others)
        out = grid.copy()
        out[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = ring
        out[row, column] = mark
        return grid, out

    return rule
