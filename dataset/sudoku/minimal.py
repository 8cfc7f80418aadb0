"""Hard puzzles: minimal ones, none of whose givens can be removed, of at least a given difficulty (docs/data.md).

Every puzzle has its own solution, drawn at random. Givens are removed in random order; a solution whose puzzle is too
easy is tried in a few more orders, then dropped. About one minimal 9x9 puzzle in six has five guesses undone.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from dataset.sudoku.canonical import classes
from dataset.sudoku.generate import Puzzle
from dataset.sudoku.grid import geometry
from dataset.sudoku.many import dig, rate
from dataset.sudoku.solve import random_solution
from dataset.workers import ordered_map
from engine.distributed import keyed_numpy
from engine.io import UsageError, progress

# Solutions per job, and orders of removal tried for each.
SOLUTIONS, ORDERS = 256, 3
# Most jobs, and jobs without a puzzle after which the difficulty counts as out of reach.
JOBS, FRUITLESS = 1 << 14, 12


def _make(job: tuple[int, int, str, int, int]) -> list[tuple[Puzzle, bytes]]:
    """The puzzles of one job (seed, size, split, least difficulty, number), each with the class of its solution."""
    seed, size, split, least, number = job
    geo = geometry(size)
    rng = keyed_numpy(seed, f"sudoku/{size}/{split}/minimal", number)
    answers = np.array([random_solution(geo, rng) for _ in range(SOLUTIONS)], dtype=np.uint8)
    out: list[Puzzle] = []
    for _ in range(ORDERS):
        order = rng.permuted(np.tile(np.arange(geo.cells), (len(answers), 1)), axis=1)
        questions = dig(answers, order, geo)
        difficulty = rate(questions, geo).guesses_undone
        hard = difficulty >= least
        kept = zip(questions[hard], answers[hard], difficulty[hard].tolist(), strict=True)
        out += [Puzzle(question.tobytes(), answer.tobytes(), undone) for question, answer, undone in kept]
        answers = answers[~hard]
    solutions = np.frombuffer(b"".join(puzzle.answer for puzzle in out), dtype=np.uint8).reshape(len(out), geo.cells)
    return list(zip(out, classes(solutions, geo), strict=True))


def _puzzles(seed: int, size: int, split: str, least: int, workers: int, taken: set[bytes]) -> Generator[Puzzle]:
    """Puzzles whose class is not in `taken`, to which it is added."""
    jobs = [(seed, size, split, least, number) for number in range(JOBS)]
    for number, puzzles in enumerate(ordered_map(_make, jobs, workers=workers), start=1):
        for puzzle, kind in puzzles:
            if kind not in taken:
                taken.add(kind)
                yield puzzle
        if not taken and number == FRUITLESS:
            break
    raise UsageError(
        f"no further minimal {size}x{size} puzzle of difficulty >= {least} among {number * SOLUTIONS:,} solutions: "
        "lower --min-difficulty or ask for fewer"
    )


def minimal(seed: int, size: int, counts: dict[str, int], *, least: int, workers: int = 1) -> dict[str, list[Puzzle]]:
    """Draw `counts` puzzles of each split, of difficulty `least` or more; no two solutions are symmetric.

    The same puzzles for any number of workers.

    Raises: UsageError if no such puzzle is found.
    """
    taken: set[bytes] = set()
    out: dict[str, list[Puzzle]] = {}
    for split, count in counts.items():
        source = _puzzles(seed, size, split, least, workers, taken)
        puzzles = (next(source) for _ in range(count))
        out[split] = list(progress(puzzles, total=count, label=f"{size}x{size} {split}"))
        source.close()
    return out
