"""Building blocks of generated tasks: rules, colours, rectangles and dots on grids uint8 [h, w].

A family is a function of (generator, s), s the side of the canvas (at least 6), that returns a rule: a function of a
generator that returns one (input, output), both of which fit the canvas. What distinguishes the tasks of a family
(colours, directions, sizes) is drawn once per rule; 0 is the background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from dataset.arc.augment import COLOURS

Grid = np.ndarray
Example = tuple[Grid, Grid]
Rule = Callable[[Generator], Example]
Family = Callable[[Generator, int], Rule]
SMALLEST_SIDE = 6


def colours(g: Generator, count: int) -> list[int]:
    """`count` different colours, without the background."""
    return (1 + g.permutation(COLOURS - 1)[:count]).tolist()


def sides(g: Generator, low: int, high: int) -> tuple[int, int]:
    """Height and width, each from `low` to `high`."""
    height, width = g.integers(low, max(low, high) + 1, 2).tolist()
    return height, width


def empty(height: int, width: int, colour: int = 0) -> Grid:
    return np.full((height, width), colour, dtype=np.uint8)


def scattered(g: Generator, height: int, width: int, palette: Sequence[int], share: float = 0.5) -> Grid:
    """Cells of random colours of the palette on the background; about `share` of all cells."""
    cells = g.choice(palette, (height, width))
    return np.where(g.random((height, width)) < share, cells, 0).astype(np.uint8)


def box(g: Generator, shape: tuple[int, ...], least: int) -> tuple[slice, slice]:
    """A random rectangle of at least `least` x `least` cells."""
    spans = []
    for size in shape:
        length = int(g.integers(least, size + 1))
        first = int(g.integers(0, size - length + 1))
        spans.append(slice(first, first + length))
    return spans[0], spans[1]


def dots(g: Generator, grid: Grid, colours: Sequence[int], *, apart: bool = False) -> list[tuple[int, int, int]]:
    """Draw a cell of each colour into the grid: (row, column, colour) of each; `apart`: none share a row or column."""
    height, width = grid.shape
    if apart:
        places = list(zip(g.permutation(height).tolist(), g.permutation(width).tolist(), strict=False))
    else:
        places = [divmod(int(place), width) for place in g.permutation(height * width)]
    dots = [(row, column, colour) for (row, column), colour in zip(places, colours, strict=False)]
    for row, column, colour in dots:
        grid[row, column] = colour
    return dots
