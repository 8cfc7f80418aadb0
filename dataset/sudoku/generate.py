"""Puzzles with one solution, each drawn from its own keyed generator, so that workers cannot change the result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dataset.sudoku.grid import Geometry, all_grids, geometry
from dataset.sudoku.solve import random_solution, solve
from dataset.workers import ordered_map
from engine.distributed import keyed_numpy
from engine.io import UsageError, progress

# Random masks are tried this often before cells are removed one by one.
MASK_TRIES = 4
# After this many boards without a puzzle, its recipe counts as impossible (too many blanks, too high a difficulty).
BOARD_TRIES = 20_000
DUPLICATE_ROUNDS = 50
CHUNK = 64


@dataclass(frozen=True)
class Puzzle:
    """One puzzle: givens and solution as bytes of digits (0 = blank), and its difficulty."""

    question: bytes
    answer: bytes
    difficulty: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Parameters from which a split's puzzles are drawn; picklable, as it is sent to every worker."""

    seed: int
    size: int
    split: str
    blanks: tuple[int, int]
    """Fewest and most blank cells."""
    min_difficulty: int = 0
    pool: np.ndarray | None = None
    """Solutions to draw from, uint8 [M, cells]; None draws random boards."""
    forbidden: frozenset[bytes] = frozenset()
    """Solutions that must not occur (those of the test split)."""


def _board(recipe: Recipe, geo: Geometry, rng: np.random.Generator) -> list[int]:
    if recipe.pool is not None:
        return recipe.pool[int(rng.integers(len(recipe.pool)))].tolist()
    return random_solution(geo, rng)


def _dig(solution: list[int], blanks: int, geo: Geometry, rng: np.random.Generator) -> tuple[list[int], int] | None:
    """A puzzle of `solution` with `blanks` blank cells, and its difficulty; None if none was found."""
    for _ in range(MASK_TRIES):
        order = rng.permutation(geo.cells).tolist()
        puzzle = solution.copy()
        for cell in order[:blanks]:
            puzzle[cell] = 0
        result = solve(puzzle, geo)
        if result.unique:
            return puzzle, result.guesses_undone
    puzzle, removed, difficulty = solution.copy(), 0, 0
    for cell in rng.permutation(geo.cells).tolist():
        if removed == blanks:
            break
        puzzle[cell] = 0
        result = solve(puzzle, geo)
        if result.unique:
            removed, difficulty = removed + 1, result.guesses_undone
        else:
            puzzle[cell] = solution[cell]
    return (puzzle, difficulty) if removed == blanks else None


def make_puzzle(recipe: Recipe, index: int, attempt: int = 0) -> Puzzle:
    """Draw puzzle `index` of the recipe; `attempt` > 0 gives replacements for duplicates.

    Raises: UsageError if no puzzle with these blanks and this difficulty is found.
    """
    geo = geometry(recipe.size)
    rng = keyed_numpy(recipe.seed, f"sudoku/{recipe.size}/{recipe.split}/{attempt}", index)
    low, high = recipe.blanks
    for _ in range(BOARD_TRIES):
        solution = _board(recipe, geo, rng)
        if bytes(solution) in recipe.forbidden:
            continue
        dug = _dig(solution, int(rng.integers(low, high + 1)), geo, rng)
        if dug is not None and dug[1] >= recipe.min_difficulty:
            return Puzzle(bytes(dug[0]), bytes(solution), dug[1])
    raise UsageError(
        f"no {recipe.size}x{recipe.size} puzzle with {low} to {high} blanks and difficulty >= "
        f"{recipe.min_difficulty} "
        f"in {BOARD_TRIES} boards: lower --min-difficulty or change --blanks"
    )


def _make_chunk(job: tuple[Recipe, range]) -> list[Puzzle]:
    recipe, indices = job
    return [make_puzzle(recipe, index) for index in indices]


def generate(recipe: Recipe, count: int, *, workers: int = 1) -> list[Puzzle]:
    """Draw `count` different puzzles of the recipe; the same list for any number of workers.

    Raises: UsageError if the recipe does not give that many different puzzles.
    """
    jobs = [(recipe, range(first, min(first + CHUNK, count))) for first in range(0, count, CHUNK)]
    chunks: Iterable[list[Puzzle]] = ordered_map(_make_chunk, jobs, workers=workers)
    label = f"{recipe.size}x{recipe.size} {recipe.split}"
    puzzles = [puzzle for chunk in progress(chunks, total=len(jobs), label=label) for puzzle in chunk]
    seen: set[bytes] = set()
    for index, puzzle in enumerate(puzzles):
        attempt = 0
        while puzzle.question in seen:
            attempt += 1
            if attempt > DUPLICATE_ROUNDS:
                raise UsageError(
                    f"only about {len(seen)} different {recipe.split} puzzles of "
                    f"{recipe.size}x{recipe.size} with "
                    f"{recipe.blanks[0]} to {recipe.blanks[1]} blanks turn up: lower --num-{recipe.split} "
                    "or widen --blanks"
                )
            puzzle = make_puzzle(recipe, index, attempt)
        seen.add(puzzle.question)
        puzzles[index] = puzzle
    return puzzles


def split_pool(size: int, seed: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(train, test) solutions to draw from: the 4x4 boards split 4:1 by the seed; (None, None) for larger boards."""
    if size > 4:
        return None, None
    grids = all_grids(size)
    order = keyed_numpy(seed, f"sudoku/{size}/boards").permutation(len(grids))
    held_out = len(grids) // 5 + 1  # 58 of 288, 230 left to train on
    return grids[np.sort(order[held_out:])], grids[np.sort(order[:held_out])]
