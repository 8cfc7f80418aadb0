"""The search of dataset/sudoku/solve.py over a batch of boards, in numpy.

Candidates are bit masks as there (bit d - 1 stands for digit d), in arrays [C, M] of M boards: boards are the last
dimension, so that every rule is arithmetic over contiguous memory. All open branches of all puzzles are in one pool; a
round gives the newest of them one pass of singles, so that no puzzle waits for another. Guesses undone are counted in
the search trees of `solve`, whose branches are independent: all guesses but those that lead to the solution.

N puzzles, M boards of the pool (several of a puzzle), n board size, C = n * n cells, U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from dataset.sudoku.grid import Geometry

ONE = np.uint16(1)
WIDTH = 512
"""Branches per round: enough to amortise the numpy calls, few enough for the CPU cache."""


@dataclass(frozen=True)
class Rated:
    """The search results of N puzzles."""

    solutions: np.ndarray
    """int64 [N], number of solutions."""
    guesses_undone: np.ndarray
    """int64 [N], as `Solved.guesses_undone` if there is one solution; otherwise meaningless."""


@dataclass
class _Pool:
    """Open branches."""

    boards: np.ndarray
    """Candidates, uint16 [C, M]."""
    owners: np.ndarray
    """Index of the puzzle, int64 [M]."""
    depths: np.ndarray
    """Guesses that led to the branch, int64 [M]."""

    def take(self, which: np.ndarray | slice) -> _Pool:
        """The branches of a mask or a slice."""
        return _Pool(self.boards[:, which], self.owners[which], self.depths[which])

    def __add__(self, other: _Pool) -> _Pool:
        return _Pool(
            np.concatenate([self.boards, other.boards], axis=1),
            np.concatenate([self.owners, other.owners]),
            np.concatenate([self.depths, other.depths]),
        )


def _opened(questions: np.ndarray, owners: np.ndarray, geo: Geometry) -> _Pool:
    """A pool of questions [M, C] (0 = blank) before any rule is applied."""
    masks = np.array([geo.full, *(1 << digit for digit in range(geo.size))], dtype=np.uint16)
    return _Pool(masks[questions.T], owners, np.zeros_like(owners))


# --- singles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Units:
    """Units to which a rule is applied together."""

    cells: np.ndarray
    """[n, U], the i-th cell of every unit."""
    of_cell: np.ndarray
    """[kinds, C], a cell's unit of each kind (row, column, box)."""


@cache
def _units(geo: Geometry) -> tuple[_Units, tuple[_Units, ...]]:
    """(all units, those of each kind)."""
    cells, n = np.array(geo.units), geo.size
    kinds = []
    for kind in cells.reshape(3, n, n):
        of_cell = np.empty(geo.cells, dtype=np.int64)
        of_cell[kind] = np.arange(n)[:, None]
        kinds.append(_Units(kind.T.copy(), of_cell[None]))
    of_cell = np.concatenate([kind.of_cell + n * number for number, kind in enumerate(kinds)])
    return _Units(cells.T.copy(), of_cell), tuple(kinds)


def _unit_bits(boards: np.ndarray, units: _Units) -> tuple[np.ndarray, np.ndarray]:
    """(bits set in any cell of each unit, bits set in two or more cells), [U, M] each."""
    cells = boards[units.cells]
    once, twice = cells[0], cells[0] & cells[1]
    once |= cells[1]
    for cell in cells[2:]:
        twice |= once & cell
        once |= cell
    return once, twice


def _at_cells(bits: np.ndarray, units: _Units) -> np.ndarray:
    """The union of the bits [U, M] over each cell's units, [C, M]."""
    out: np.ndarray = bits[units.of_cell[0]]
    for of_cell in units.of_cell[1:]:
        out |= bits[of_cell]
    return out


def _any_of(bits: np.ndarray) -> np.ndarray:
    """Which boards have a bit set anywhere; [..., M] -> bool [M]."""
    return np.bitwise_or.reduce(bits, axis=0) != 0


def _naked(boards: np.ndarray, geo: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Remove every placed digit from the peers of its cell, in place. Returns (changed, impossible), bool [M] each."""
    units, _ = _units(geo)
    singles = boards * (boards & (boards - ONE) == 0)
    once, twice = _unit_bits(singles, units)
    lost = boards & _at_cells(once, units) & ~singles
    boards ^= lost
    return _any_of(lost), _any_of(twice) | ~boards.all(axis=0)


def _hidden(boards: np.ndarray, kinds: Sequence[_Units], geo: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Place every digit for which a unit has one cell left, in place. Returns (changed, impossible), bool [M] each."""
    full, changed, bad = np.uint16(geo.full), np.zeros(boards.shape[1], dtype=bool), np.zeros(boards.shape[1], bool)
    for units in kinds:
        once, twice = _unit_bits(boards, units)
        only = boards & _at_cells(once & ~twice, units)
        only *= only != boards
        bad |= _any_of(once ^ full) | _any_of(only & (only - (only != 0)))
        changed |= _any_of(only)
        boards *= only == 0
        boards |= only
    return changed, bad


# --- the search -------------------------------------------------------------------------------------------------------


def _branches(pool: _Pool) -> _Pool:
    """Branch settled boards: one for each candidate of the cell that `branch_cell` takes, digits ascending."""
    if not pool.owners.size:
        return pool
    counts = np.bitwise_count(pool.boards)
    counts[counts == 1] = 255
    cell = counts.argmin(axis=0)
    choice = pool.boards[cell, np.arange(cell.size)]
    parts, whose = [], []
    for bit in range(int(choice.max()).bit_length()):
        takes = np.flatnonzero(choice >> bit & 1)
        child = pool.boards[:, takes]
        child[cell[takes], np.arange(takes.size)] = 1 << bit
        parts.append(child)
        whose.append(takes)
    parents = np.concatenate(whose)
    return _Pool(np.concatenate(parts, axis=1), pool.owners[parents], pool.depths[parents] + 1)


def _round(pool: _Pool, geo: Geometry, *, as_solve: bool) -> tuple[_Pool, _Pool, _Pool]:
    """One pass of singles over the newest branches: (all branches open after it, the new children, the solved ones).

    Impossible branches are dropped. Taking the newest first is close to a depth-first search. `as_solve` keeps the
    order of `propagate`, on which the guesses of an impossible board depend: naked singles until nothing changes, then
    hidden ones by rows, columns and boxes. Otherwise all rules are applied at once.
    """
    everything, by_kind = _units(geo)
    pool, older = pool.take(slice(-WIDTH, None)), pool.take(slice(None, -WIDTH))
    changed, bad = _naked(pool.boards, geo)
    if as_solve:
        unsettled, pool = pool.take(changed & ~bad), pool.take(~changed & ~bad)
        older = older + unsettled
        changed, bad = _hidden(pool.boards, by_kind, geo)
    else:
        placed, missing = _hidden(pool.boards, (everything,), geo)
        changed, bad = changed | placed, bad | missing
    unsettled, pool = pool.take(changed & ~bad), pool.take(~changed & ~bad)
    solved = ~_any_of(pool.boards & (pool.boards - ONE))
    children = _branches(pool.take(~solved))
    return older + unsettled + children, children, pool.take(solved)


def rate(questions: np.ndarray, geo: Geometry) -> Rated:
    """Search N puzzles [N, C] exhaustively: solutions and guesses undone of each."""
    count = len(questions)
    solutions, undone = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    pool = _opened(questions, np.arange(count), geo)
    while pool.owners.size:
        pool, children, solved = _round(pool, geo, as_solve=True)
        solutions += np.bincount(solved.owners, minlength=count)
        undone += np.bincount(children.owners, minlength=count)
        np.subtract.at(undone, solved.owners, solved.depths)  # guesses that lead to a solution are not undone
    return Rated(solutions, undone)


def dig(answers: np.ndarray, order: np.ndarray, geo: Geometry) -> np.ndarray:
    """Minimal puzzles of N solutions [N, C]: remove givens in the order of `order` [N, C] while one solution is left.

    A given can be removed if the search finds no solution with another digit in its cell.
    """
    questions, count = answers.copy(), len(answers)
    bits = np.left_shift(ONE, answers.astype(np.uint16) - ONE)
    at = np.zeros(count, dtype=np.int64)  # position of each puzzle in its order
    ready = np.arange(count)
    pool = _opened(questions[:0], ready[:0], geo)
    while ready.size or pool.owners.size:
        cells = order[ready, at[ready]]
        blanked = questions[ready]
        blanked[np.arange(ready.size), cells] = 0
        opened = _opened(blanked, ready, geo)
        opened.boards[cells, np.arange(ready.size)] ^= bits[ready, cells]
        pool, _, solved = _round(pool + opened, geo, as_solve=False)
        needed, searching = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        needed[solved.owners] = True
        if solved.owners.size:
            pool = pool.take(~needed[pool.owners])
        searching[pool.owners] = True
        ended = np.flatnonzero(~searching & (at < geo.cells))
        free = ended[~needed[ended]]
        questions[free, order[free, at[free]]] = 0
        at[ended] += 1
        ready = ended[at[ended] < geo.cells]
    return questions
