"""The exact solver: naked and hidden singles, then a search over the cell with the fewest candidates.

Candidates are bit masks (bit d - 1 stands for digit d). The search takes the cell with the fewest candidates, the
lowest index among equals, and tries all its digits in ascending order, so it proves uniqueness.

Difficulty = guesses undone: tried digits that lead to no solution, each nested one counted. Guesses that are part of
the solution are not counted, so a puzzle that singles alone solve has difficulty 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataset.sudoku.grid import Geometry

DIFFICULTY_RULE = (
    "guesses undone by a full search with naked and hidden singles (fewest candidates, lowest index, digits ascending)"
)


@dataclass(frozen=True)
class Solved:
    """The result of a search: at most `limit` solutions (tuples of digits), and the number of guesses undone."""

    solutions: list[tuple[int, ...]]
    guesses_undone: int

    @property
    def unique(self) -> bool:
        """Whether the search found exactly one solution (meaningful for limit >= 2)."""
        return len(self.solutions) == 1


def propagate(candidates: list[int], fresh: list[int], geo: Geometry) -> bool:
    """Apply naked and hidden singles in place until nothing changes; False on a contradiction.

    `fresh` lists the cells that have just become single. The result does not depend on their order: both rules only
    remove candidates, and an impossible board ends with an empty cell or a digit without a cell.
    """
    peers, full = geo.peers, geo.full
    while True:
        while fresh:
            cell = fresh.pop()
            bit = candidates[cell]
            for peer in peers[cell]:
                left = candidates[peer]
                if left & bit:
                    left ^= bit
                    if not left:
                        return False
                    candidates[peer] = left
                    if not left & (left - 1):
                        fresh.append(peer)
        for unit in geo.units:
            once = twice = 0
            for cell in unit:
                left = candidates[cell]
                twice |= once & left
                once |= left
            if once != full:
                return False
            if not once & ~twice:
                continue
            for cell in unit:
                left = candidates[cell]
                hidden = left & ~twice
                # A cell whose only candidates are two digits without another cell is left to the search: the ratings
                # of published lists and of all data sets so far are counted that way.
                if hidden and hidden != left:
                    if hidden & (hidden - 1):
                        return False
                    candidates[cell] = hidden
                    fresh.append(cell)
        if not fresh:
            return True


def branch_cell(candidates: Sequence[int]) -> int:
    """The open cell with the fewest candidates (lowest index among equals), or -1 if all are single."""
    best, fewest = -1, 1 << 30
    for cell, left in enumerate(candidates):
        if left & (left - 1):
            count = left.bit_count()
            if count == 2:
                return cell
            if count < fewest:
                best, fewest = cell, count
    return best


def start(puzzle: Sequence[int], geo: Geometry) -> list[int] | None:
    """The candidates after singles; None if the givens contradict each other."""
    candidates = [1 << (digit - 1) if digit else geo.full for digit in puzzle]
    fresh = [cell for cell, digit in enumerate(puzzle) if digit]
    return candidates if propagate(candidates, fresh, geo) else None


def solve(puzzle: Sequence[int], geo: Geometry, limit: int = 2) -> Solved:
    """Search `puzzle` (0 = blank) for up to `limit` solutions."""
    solutions: list[tuple[int, ...]] = []
    undone = 0

    def search(candidates: list[int]) -> bool:
        nonlocal undone
        cell = branch_cell(candidates)
        if cell < 0:
            solutions.append(tuple(left.bit_length() for left in candidates))
            return True
        placed, rest = False, candidates[cell]
        while rest and len(solutions) < limit:
            bit = rest & -rest
            rest ^= bit
            trial = candidates.copy()
            trial[cell] = bit
            if propagate(trial, [cell], geo) and search(trial):
                placed = True
            else:
                undone += 1
        return placed

    candidates = start([int(digit) for digit in puzzle], geo)
    if candidates is not None:
        search(candidates)
    return Solved(solutions, undone)


def random_solution(geo: Geometry, rng: np.random.Generator) -> list[int]:
    """A completely filled board, drawn by a search that tries the digits of each guess in random order."""

    def search(candidates: list[int]) -> list[int] | None:
        open_cells = [cell for cell, left in enumerate(candidates) if left & (left - 1)]
        if not open_cells:
            return candidates
        cell = min(open_cells, key=lambda c: candidates[c].bit_count())
        for digit in rng.permutation(geo.size).tolist():
            if not candidates[cell] >> digit & 1:
                continue
            trial = candidates.copy()
            trial[cell] = 1 << digit
            if propagate(trial, [cell], geo):
                done = search(trial)
                if done is not None:
                    return done
        return None

    filled = search([geo.full] * geo.cells)
    assert filled is not None  # an empty board always has a solution
    return [left.bit_length() for left in filled]
