"""The exact solver against an independent set-based one and against plain enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dataset.sudoku.generate import Recipe, generate
from dataset.sudoku.grid import all_grids, geometry, valid_solutions
from dataset.sudoku.solve import random_solution, solve

# Known 9x9 puzzles with their guesses undone as counted by `Naive`; the last one has two solutions.
HARD = (
    ("8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..", 310),
    ("..............3.85..1.2.......5.7.....4...1...9.......5......73..2.1........4...9", 0),
    ("4.....8.5.3..........7......2.....6.....8.4......1.......6.3.7.5..2.....1.4......", 94),
    ("9.6.7.4.3...4..2...7..23.1.5.....1...4.2.8.6...3.....5.3.7...5...7..5...4.5.1.7.8", 0),
)


def digits(text: str) -> list[int]:
    return [0 if character == "." else int(character) for character in text]


def units_of(size: int, height: int, width: int) -> list[list[int]]:
    """Rows, columns and boxes, written out independently of dataset.sudoku.grid."""
    out = [[r * size + c for c in range(size)] for r in range(size)]
    out += [[r * size + c for r in range(size)] for c in range(size)]
    for top, left in itertools.product(range(0, size, height), range(0, size, width)):
        out.append([(top + r) * size + left + c for r in range(height) for c in range(width)])
    return out


class Naive:
    """Singles to a fixed point by recomputing everything from sets, then the search of docs/decisions/0009."""

    def __init__(self, size: int, height: int, width: int) -> None:
        self.size, self.units = size, units_of(size, height, width)
        self.solutions: list[tuple[int, ...]] = []
        self.undone = 0

    def settle(self, cand: list[set[int]]) -> bool:
        while True:
            before = [set(c) for c in cand]
            for unit in self.units:
                for cell in unit:
                    if len(cand[cell]) == 1:
                        for other in unit:
                            if other != cell:
                                cand[other] -= cand[cell]
                for digit in range(1, self.size + 1):
                    places = [cell for cell in unit if digit in cand[cell]]
                    if not places:
                        return False
                    if len(places) == 1:
                        cand[places[0]] = {digit}
            if not all(cand):
                return False
            if cand == before:
                return True

    def search(self, cand: list[set[int]]) -> bool:
        if all(len(c) == 1 for c in cand):
            self.solutions.append(tuple(min(c) for c in cand))
            return True
        _, cell = min((len(c), i) for i, c in enumerate(cand) if len(c) > 1)
        solved = False
        for digit in sorted(cand[cell]):
            trial = [set(c) for c in cand]
            trial[cell] = {digit}
            if self.settle(trial) and self.search(trial):
                solved = True
            else:
                self.undone += 1
        return solved

    def run(self, puzzle: list[int]) -> Naive:
        cand = [{d} if d else set(range(1, self.size + 1)) for d in puzzle]
        if self.settle(cand):
            self.search(cand)
        return self


def test_geometry_has_the_units_written_out_here():
    for size, height, width in ((4, 2, 2), (6, 2, 3), (9, 3, 3)):
        geo = geometry(size)
        assert sorted(map(sorted, geo.units)) == sorted(units_of(size, height, width))
        for cell, peers in enumerate(geo.peers):
            seen = {c for unit in units_of(size, height, width) if cell in unit for c in unit} - {cell}
            assert set(peers) == seen


def test_the_288_boards_of_size_4():
    grids = all_grids(4)
    assert grids.shape == (288, 16)
    assert len({g.tobytes() for g in grids}) == 288
    assert valid_solutions(grids, geometry(4)).all()
    invalid = grids.copy()
    invalid[:, 0] = invalid[:, 0] % 4 + 1
    assert not valid_solutions(invalid, geometry(4)).any()
    assert not valid_solutions(np.zeros((1, 16), dtype=np.uint8), geometry(4)).any()


@pytest.mark.parametrize("blanks", [8, 11, 13])
def test_solutions_of_4x4_equal_enumeration(blanks):
    rng, grids, geo = np.random.default_rng(blanks), all_grids(4), geometry(4)
    for _ in range(60):
        puzzle = grids[rng.integers(288)].copy()
        puzzle[rng.permutation(16)[:blanks]] = 0
        fits = ((grids == puzzle) | (puzzle == 0)).all(axis=1)
        solutions = solve(puzzle.tolist(), geo, limit=1000).solutions
        assert sorted(solutions) == sorted(tuple(g) for g in grids[fits].tolist())
        assert solve(puzzle.tolist(), geo).unique == (fits.sum() == 1)


def test_contradicting_givens_have_no_solution():
    puzzle = [0] * 16
    puzzle[0] = puzzle[3] = 2
    assert solve(puzzle, geometry(4)).solutions == []


@pytest.mark.parametrize(("text", "undone"), HARD)
def test_difficulty_of_hard_puzzles_equals_the_independent_count(text, undone):
    ours = solve(digits(text), geometry(9), limit=1000)
    naive = Naive(9, 3, 3).run(digits(text))
    assert ours.solutions == naive.solutions
    assert ours.guesses_undone == naive.undone == undone


@pytest.mark.parametrize(("size", "height", "width", "blanks"), [(4, 2, 2, 12), (6, 2, 3, 26)])
def test_difficulty_of_random_puzzles_equals_the_independent_count(size, height, width, blanks):
    geo, rng = geometry(size), np.random.default_rng(3)
    counts = set()
    for _ in range(40):
        puzzle = np.array(random_solution(geo, rng))
        puzzle[rng.permutation(geo.cells)[:blanks]] = 0
        ours = solve(puzzle.tolist(), geo, limit=10_000)
        naive = Naive(size, height, width).run(puzzle.tolist())
        assert (ours.solutions, ours.guesses_undone) == (naive.solutions, naive.undone)
        counts.add((len(ours.solutions) > 1, ours.guesses_undone > 0))
    assert len(counts) > 1, "the sample should hold easy and hard puzzles"


@pytest.mark.parametrize(("size", "blanks", "count"), [(4, (6, 10), 80), (6, (12, 24), 40), (9, (30, 52), 16)])
def test_generated_puzzles_are_unique_valid_and_within_their_blanks(size, blanks, count):
    geo = geometry(size)
    puzzles = generate(Recipe(seed=1, size=size, split="train", blanks=blanks), count)
    assert len({p.question for p in puzzles}) == count
    for puzzle in puzzles:
        assert blanks[0] <= puzzle.question.count(0) <= blanks[1]
        result = solve(list(puzzle.question), geo)
        assert [bytes(s) for s in result.solutions] == [puzzle.answer]
        assert result.guesses_undone == puzzle.difficulty
    answers = np.array([list(p.answer) for p in puzzles])
    assert valid_solutions(answers, geo).all()


def test_min_difficulty_is_kept():
    puzzles = generate(Recipe(seed=2, size=9, split="train", blanks=(52, 54), min_difficulty=2), 3)
    assert all(p.difficulty >= 2 for p in puzzles)
