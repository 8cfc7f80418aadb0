"""Task families about figures, lines, halves and numbers. Each docstring is the rule that the demonstrations show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from dataset.arc.augment import dihedral
from dataset.arc.corpus.parts import Example, Grid, Rule, box, colours, dots, empty, scattered, sides

# --- rectangles -------------------------------------------------------------------------------------------------------


def _outline(g: Generator, s: int) -> tuple[Grid, Grid]:
    """Two masks of one canvas: the outline of a rectangle, and its interior."""
    outline = np.zeros(sides(g, 5, s), dtype=bool)
    inside = np.zeros_like(outline)
    rows, columns = box(g, outline.shape, 3)
    outline[rows, columns] = True
    inside[rows.start + 1 : rows.stop - 1, columns.start + 1 : columns.stop - 1] = True
    return outline & ~inside, inside


def filled(g: Generator, s: int) -> Rule:
    """The interior of an outlined rectangle is filled."""
    line, fill = colours(g, 2)

    def rule(g: Generator) -> Example:
        outline, inside = _outline(g, s)
        return outline * np.uint8(line), outline * np.uint8(line) + inside * np.uint8(fill)

    return rule


def hollowed(g: Generator, s: int) -> Rule:
    """Only the outline of a filled rectangle is kept."""
    (colour,) = colours(g, 1)

    def rule(g: Generator) -> Example:
        outline, inside = _outline(g, s)
        return (outline | inside) * np.uint8(colour), outline * np.uint8(colour)

    return rule


def cleaned(g: Generator, s: int) -> Rule:
    """A rectangle is kept, single cells around it are removed."""
    figure, noise = colours(g, 2)

    def rule(g: Generator) -> Example:
        out = empty(*sides(g, 5, s))
        out[box(g, out.shape, 2)] = figure
        specks = (g.random(out.shape) < 0.2) & (out == 0)
        return np.where(specks, noise, out).astype(np.uint8), out

    return rule


def patched(g: Generator, s: int) -> Rule:
    """Holes in a rectangle that covers the grid get its colour."""
    (colour,) = colours(g, 1)

    def rule(g: Generator) -> Example:
        out = empty(*sides(g, 3, s), colour)
        return np.where(g.random(out.shape) < 0.25, 0, out).astype(np.uint8), out

    return rule


# --- dots and lines ---------------------------------------------------------------------------------------------------


def rays(g: Generator, s: int) -> Rule:
    """Every dot is extended by a line to one edge."""
    tid, palette = int(g.integers(4)), colours(g, 3)

    def rule(g: Generator) -> Example:
        grid = empty(*sides(g, 4, s))
        dots(g, grid, palette[: int(g.integers(1, 4))], apart=True)
        upright = dihedral(grid, tid)
        drawn = np.maximum.accumulate(upright, axis=0)
        return grid, dihedral(drawn, (4 - tid) % 4).copy()

    return rule


def crossed(g: Generator, s: int) -> Rule:
    """Every dot becomes a line across the grid, all in one direction."""
    flat, palette = bool(g.integers(2)), colours(g, 3)

    def rule(g: Generator) -> Example:
        grid = empty(*sides(g, 4, s))
        out = grid.copy()
        for row, column, colour in dots(g, grid, palette[: int(g.integers(1, 4))], apart=True):
            out[(row, slice(None)) if flat else (slice(None), column)] = colour
        return grid, out

    return rule


def connected(g: Generator, s: int) -> Rule:
    """Two dots in a row are joined by a line."""
    tid, (end, line) = int(g.integers(2)), colours(g, 2)

    def rule(g: Generator) -> Example:
        grid = empty(*sides(g, 4, s))
        for row in g.permutation(len(grid))[: int(g.integers(1, 3))]:
            left, right = sorted(g.permutation(grid.shape[1])[:2])
            grid[row, [left, right]] = end
        ends = grid != 0
        between = np.maximum.accumulate(ends, axis=1) & np.maximum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
        out = np.where(between & ~ends, line, grid).astype(np.uint8)
        return dihedral(grid, tid).copy(), dihedral(out, tid).copy()

    return rule


def diagonals(g: Generator, s: int) -> Rule:
    """Dots are continued along a diagonal to the edge."""
    tid, (colour,) = int(g.integers(4)), colours(g, 1)

    def rule(g: Generator) -> Example:
        grid = empty(*sides(g, 4, s))
        out = grid.copy()
        for row, column, _ in dots(g, grid, [colour] * int(g.integers(1, 3))):
            length = min(len(grid) - row, grid.shape[1] - column)
            out[np.arange(row, row + length), np.arange(column, column + length)] = colour
        return dihedral(grid, tid).copy(), dihedral(out, tid).copy()

    return rule


def haloed(g: Generator, s: int) -> Rule:
    """Every dot gets a ring of another colour."""
    dot, ring = colours(g, 2)

    def rule(g: Generator) -> Example:
        grid = empty(*sides(g, 4, s))
        dots(g, grid, [dot] * int(g.integers(1, 3)))
        near = np.zeros(grid.shape, dtype=bool)
        for row, column in np.argwhere(grid):
            near[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = True
        return grid, np.where(near & (grid == 0), ring, grid).astype(np.uint8)

    return rule


# --- halves and symmetry ----------------------------------------------------------------------------------------------


def _halves(g: Generator, s: int, together: Callable[[Grid, Grid], Grid]) -> Rule:
    first, second, wall, answer = colours(g, 4)

    def rule(g: Generator) -> Example:
        height, width = sides(g, 2, (s - 1) // 2)
        left, right = (g.random((height, width)) < 0.5 for _ in range(2))
        column = empty(height, 1, wall)
        grid = np.concatenate([left * np.uint8(first), column, right * np.uint8(second)], axis=1)
        return grid, together(left, right) * np.uint8(answer)

    return rule


def either(g: Generator, s: int) -> Rule:
    """Cells that are coloured in one half or the other."""
    return _halves(g, s, np.logical_or)


def both(g: Generator, s: int) -> Rule:
    """Cells that are coloured in both halves."""
    return _halves(g, s, np.logical_and)


def exactly_one(g: Generator, s: int) -> Rule:
    """Cells that are coloured in one half only."""
    return _halves(g, s, np.logical_xor)


def neither(g: Generator, s: int) -> Rule:
    """Cells that are coloured in neither half."""
    return _halves(g, s, lambda left, right: ~(left | right))


def completed(g: Generator, s: int) -> Rule:
    """The empty half becomes the mirror image of the other half."""
    tid, palette = int(g.integers(4)), colours(g, 3)

    def rule(g: Generator) -> Example:
        height, width = sides(g, 2, s // 2)
        half = scattered(g, height, width, palette, 0.6)
        grid = np.concatenate([half, np.zeros_like(half)], axis=1)
        out = np.concatenate([half, half[:, ::-1]], axis=1)
        return dihedral(grid, tid).copy(), dihedral(out, tid).copy()

    return rule


# --- numbers and order ------------------------------------------------------------------------------------------------


def counted(g: Generator, s: int) -> Rule:
    """The answer is a bar whose length is the number of coloured cells."""
    cell, bar = colours(g, 2)

    def rule(g: Generator) -> Example:
        grid = empty(*sides(g, 3, s))
        count = int(g.integers(1, min(s, grid.size) + 1))
        dots(g, grid, [cell] * count)
        return grid, empty(1, count, bar)

    return rule


def ordered(g: Generator, s: int) -> Rule:
    """Bars are sorted by their height."""
    tid, rising, palette = int(g.integers(4)), bool(g.integers(2)), colours(g, 3)

    def rule(g: Generator) -> Example:
        height, width = sides(g, 3, s)
        heights = g.integers(0, height + 1, width)

        def bars(heights: np.ndarray) -> Grid:
            lit = np.arange(height)[::-1, None] < heights
            return dihedral(lit * np.uint8(palette[0]), tid).copy()

        return bars(heights), bars(np.sort(heights) if rising else np.sort(heights)[::-1])

    return rule


def chosen(g: Generator, s: int) -> Rule:
    """The row that begins with a marker, without it."""
    tid, (marker, *palette) = int(g.integers(2)), colours(g, 4)

    def rule(g: Generator) -> Example:
        height, width = sides(g, 3, s)
        grid = scattered(g, height, width, palette, 0.8)
        row = int(g.integers(height))
        grid[:, 0], grid[row, 0] = 0, marker
        return dihedral(grid, tid).copy(), dihedral(grid[row : row + 1, 1:], tid).copy()

    return rule


def without_repeats(g: Generator, s: int) -> Rule:
    """One of each run of equal rows is kept."""
    tid, palette = int(g.integers(2)), colours(g, 4)

    def rule(g: Generator) -> Example:
        height, width = sides(g, 2, s // 2)
        rows = scattered(g, height, width, palette, 0.8)
        rows = rows[np.append(True, (rows[1:] != rows[:-1]).any(axis=1))]
        grid = np.repeat(rows, g.integers(1, 3, len(rows)), axis=0)
        return dihedral(grid, tid).copy(), dihedral(rows, tid).copy()

    return rule
