"""Generated mazes: a spanning tree of corridors with some walls opened, and a start far from its goal.

Corridor cells are on every second row and column. A randomised depth-first search joins them to a tree (one path
between any two); then a share of the remaining walls between two corridors is opened, so that mazes have loops, dead
ends and sometimes several shortest paths. Each maze has its own generator, keyed by seed, split and index.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from dataset.maze.paths import FREE, GOAL, START, STEPS, WALL, distances, draw_shortest
from engine.distributed import keyed_numpy
from engine.io import UsageError, progress

TRIES = 200
"""Grids drawn for one maze before its recipe counts as impossible."""


@dataclass(frozen=True, kw_only=True)
class MazeRecipe:
    """Parameters from which the mazes of a split are drawn."""

    seed: int
    side: int
    min_path: int
    """Least length of the shortest path, in steps."""
    loops: float
    """Share of the walls between two corridors that are opened."""
    split: str


def carve(side: int, loops: float, rng: np.random.Generator) -> np.ndarray:
    """A random grid of walls and free cells, uint8 [side, side]; all free cells are connected."""
    grid = np.full((side, side), WALL, dtype=np.uint8)
    # With an even side, the corridors leave one row and column over: at the end or at the beginning.
    top, left = (int(rng.integers(0, 2)) if side % 2 == 0 else 0 for _ in range(2))
    at = (
        top + 2 * int(rng.integers(0, (side - top + 1) // 2)),
        left + 2 * int(rng.integers(0, (side - left + 1) // 2)),
    )
    grid[at] = FREE
    stack = [at]
    while stack:
        row, column = stack[-1]
        ahead = [
            (down, right)
            for down, right in STEPS
            if 0 <= row + 2 * down < side
            and 0 <= column + 2 * right < side
            and grid[row + 2 * down, column + 2 * right] == WALL
        ]
        if not ahead:
            stack.pop()
            continue
        down, right = ahead[int(rng.integers(len(ahead)))]
        grid[row + down, column + right] = grid[row + 2 * down, column + 2 * right] = FREE
        stack.append((row + 2 * down, column + 2 * right))
    free = grid == FREE
    between = np.zeros_like(free)  # walls with a corridor on both sides
    between[1:-1] |= free[:-2] & free[2:]
    between[:, 1:-1] |= free[:, :-2] & free[:, 2:]
    grid[between & ~free & (rng.random(grid.shape) < loops)] = FREE
    return grid


def make_maze(recipe: MazeRecipe, index: int, attempt: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw maze `index` and its answer, token grids [S, S]; `attempt` > 0 gives replacements for duplicates.

    Raises: UsageError if no grid of this side has so long a shortest path.
    """
    rng = keyed_numpy(recipe.seed, f"maze/{recipe.side}/{recipe.split}/{attempt}", index)
    longest = 0
    for _ in range(TRIES):
        grid = carve(recipe.side, recipe.loops, rng)
        cells = np.argwhere(grid == FREE)
        start = cells[int(rng.integers(len(cells)))]
        source = np.zeros((1, recipe.side, recipe.side), dtype=bool)
        source[0, start[0], start[1]] = True
        steps = distances((grid == FREE)[None], source)[0]
        longest = max(longest, int(steps.max()))
        far = np.argwhere(steps >= recipe.min_path)
        if not len(far):
            continue
        goal = far[int(rng.integers(len(far)))]
        grid[tuple(start)], grid[tuple(goal)] = START, GOAL
        return grid, draw_shortest(grid)
    raise UsageError(
        f"no maze of {recipe.side}x{recipe.side} with a shortest path of {recipe.min_path} steps in {TRIES} grids "
        f"(the longest has {longest}): lower --min-path or --loops"
    )


def symmetric_copies(grid: np.ndarray) -> list[np.ndarray]:
    """The eight turned and mirrored forms of a grid [S, S], the grid itself first."""
    return [np.rot90(form, turns) for form in (grid, np.fliplr(grid)) for turns in range(4)]


def canonical(maze: np.ndarray) -> bytes:
    """The same bytes for all eight forms of a maze, and for no other maze."""
    return min(np.ascontiguousarray(form).tobytes() for form in symmetric_copies(maze))


def generate(
    recipe: MazeRecipe, count: int, forbidden: Container[bytes] = frozenset()
) -> tuple[np.ndarray, np.ndarray, set[bytes]]:
    """Draw `count` mazes, none a form of another or of a forbidden one: (mazes, answers, their canonical keys).

    Raises: UsageError if the recipe does not give that many.
    """
    mazes, answers = [], []
    seen: set[bytes] = set()
    for index in progress(range(count), total=count, label=f"{recipe.side}x{recipe.side} {recipe.split} mazes"):
        for attempt in range(TRIES):
            maze, answer = make_maze(recipe, index, attempt)
            key = canonical(maze)
            if key not in seen and key not in forbidden:
                break
        else:
            raise UsageError(
                f"only about {len(seen)} different mazes of {recipe.side}x{recipe.side} with a path of "
                f"{recipe.min_path} steps: ask for fewer"
            )
        seen.add(key)
        mazes.append(maze)
        answers.append(answer)
    return np.stack(mazes), np.stack(answers), seen
