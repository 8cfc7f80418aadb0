"""Puzzles read from a file (forms: dataset/sudoku/rows.py), each checked against its solution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dataset.sudoku.grid import BOXES, Geometry, geometry, size_of, valid_solutions
from dataset.sudoku.rows import BLANKS, Row, read_rows
from dataset.sudoku.solve import solve
from dataset.workers import ordered_map
from engine.distributed import keyed_numpy
from engine.io import UsageError, progress

# Rows are checked in vectorised pieces; the public training file has 3.8 million.
PIECE = 1 << 16
# Puzzles of a split that are searched for a second solution: a hard one takes about 30 ms.
SEARCHED = 1000
CHUNK = 32
ZEROS = str.maketrans(dict.fromkeys(BLANKS, "0"))


@dataclass
class Boards:
    """Puzzles of one file."""

    path: Path
    size: int
    questions: np.ndarray
    """uint8 [N, cells], 0 = blank."""
    answers: np.ndarray
    """uint8 [N, cells]"""
    ratings: np.ndarray
    """int32 [N], the file's difficulty, rounded down."""
    lines: np.ndarray
    """int64 [N], line numbers in the file."""
    rows_read: int = 0
    rated: bool = True
    """Whether the file has ratings; otherwise all are 0."""
    solved_here: bool = False
    """The file has no answers: they are the solver's, which proved that each puzzle has one."""

    def take(self, chosen: np.ndarray) -> Boards:
        """The puzzles with these indices, in that order."""
        arrays = (self.questions[chosen], self.answers[chosen], self.ratings[chosen], self.lines[chosen])
        return Boards(self.path, self.size, *arrays, self.rows_read, self.rated, self.solved_here)

    def followed_by(self, other: Boards) -> Boards:
        """The puzzles of both files, which have the same size."""
        columns = ("questions", "answers", "ratings", "lines")
        joined: dict[str, Any] = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in columns}
        return replace(
            self,
            **joined,
            rows_read=self.rows_read + other.rows_read,
            rated=self.rated and other.rated,
            solved_here=self.solved_here and other.solved_here,
        )

    def rating_histogram(self) -> dict[str, int]:
        """Puzzles per rating."""
        return {str(rating): count for rating, count in sorted(Counter(self.ratings.tolist()).items())}

    def solved(self) -> int:
        """Puzzles without a blank."""
        return int((self.questions > 0).all(axis=1).sum())

    def repeated(self) -> int:
        """Puzzles that repeat an earlier one of the file."""
        return len(self.questions) - len({row.tobytes() for row in self.questions})


@dataclass
class _Piece:
    lines: list[int] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    ratings: list[int] = field(default_factory=list)


def _digits(texts: list[str], cells: int) -> np.ndarray:
    """Characters as digits, blanks as 0; anything else becomes a number above 9."""
    joined = "".join(texts).translate(ZEROS).encode("latin-1", "replace")
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(texts), cells) - np.uint8(ord("0"))


def _check(path: Path, piece: _Piece, geo: Geometry) -> tuple[np.ndarray, np.ndarray | None]:
    questions = _digits(piece.questions, geo.cells)

    def first_bad(bad: Any, text: str) -> None:
        if bad.any():
            raise UsageError(f"{path}:{piece.lines[int(bad.argmax())]}: {text}")

    digits = f"1 to {geo.size}"
    first_bad((questions > geo.size).any(axis=1), f"question has a character other than '.', 0 and {digits}")
    if not piece.answers:
        return questions, None
    answers = _digits(piece.answers, geo.cells)
    first_bad(((answers > geo.size) | (answers == 0)).any(axis=1), f"answer has a character other than {digits}")
    first_bad(((questions > 0) & (questions != answers)).any(axis=1), "answer contradicts a given of the question")
    first_bad(~valid_solutions(answers, geo), "answer is not a Sudoku solution: a row, column or box repeats a digit")
    return questions, answers


def _rating(path: Path, row: Row) -> int:
    if row.rating is None:
        return 0
    try:
        value = float(row.rating.replace(",", "."))  # a decimal comma is possible if ; is the separator
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{path}:{row.line}: rating must be a number, got {row.rating[:40]!r}")
    return min(max(math.floor(value), 0), 2**31 - 1)


def _pieces(path: Path, rows: Iterator[Row], size: int | None) -> Iterator[tuple[int, _Piece]]:
    """Rows as (board size, piece), lengths checked."""
    piece = _Piece()
    for row in rows:
        here = f"{path}:{row.line}"
        if size is None:
            size = size_of(len(row.question))
            if size is None:
                known = ", ".join(str(n * n) for n in BOXES)
                raise UsageError(f"{here}: question has {len(row.question)} cells, expected one of {known}")
        for name, text in (("question", row.question), ("answer", row.answer)):
            if text is not None and len(text) != size * size:
                raise UsageError(f"{here}: {name} has {len(text)} cells, expected {size * size}")
        piece.ratings.append(_rating(path, row))
        piece.lines.append(row.line)
        piece.questions.append(row.question)
        if row.answer is not None:
            piece.answers.append(row.answer)
        if len(piece.lines) == PIECE:
            yield size, piece
            piece = _Piece()
    if piece.lines:
        assert size is not None
        yield size, piece


def read_csv(
    path: str | Path, *, size: int | None = None, min_difficulty: int = 0, workers: int = 1, flag: str = "--input"
) -> Boards:
    """Read the puzzles of a file whose rating is at least `min_difficulty`; missing answers are solved for.

    `flag`: that with which the file was given, for messages.

    Raises: UsageError naming file and line of the first row that is not a puzzle with its solution.
    """
    path = Path(path)
    layout, rows = read_rows(path, flag)
    if min_difficulty and layout.rating is None:
        raise UsageError(f"{path} has no ratings: leave --min-difficulty out")
    parts: list[tuple[np.ndarray, ...]] = []
    read = 0
    side = size or 9  # set by the first row if `size` is None
    for side, piece in _pieces(path, rows, size):
        questions, answers = _check(path, piece, geometry(side))
        lines, ratings = np.array(piece.lines, dtype=np.int64), np.array(piece.ratings, dtype=np.int32)
        keep = ratings >= min_difficulty
        if answers is None:
            answers = _solved(path, questions, lines, geometry(side), workers)
        parts.append((questions[keep], answers[keep], ratings[keep], lines[keep]))
        read += len(keep)
    if not read:
        raise UsageError(f"{path} holds no puzzle")
    questions, answers, ratings, lines = (np.concatenate(column) for column in zip(*parts, strict=True))
    rated, solved_here = layout.rating is not None, layout.answer is None
    boards = Boards(path, side, questions, answers, ratings, lines, read, rated, solved_here)
    if not len(boards.ratings):
        raise UsageError(f"{path}: none of {read} puzzles has a rating >= {min_difficulty}: lower --min-difficulty")
    return boards


# --- checks by the solver ---------------------------------------------------------------------------------------------


def _search_job(job: tuple[np.ndarray, int]) -> list[list[tuple[int, ...]]]:
    questions, size = job
    return [solve(question, geometry(size)).solutions for question in questions.tolist()]


def _search(questions: np.ndarray, geo: Geometry, workers: int) -> list[list[tuple[int, ...]]]:
    """Up to two solutions of each puzzle."""
    edges = [*range(0, len(questions), CHUNK), len(questions)]
    jobs = [(questions[low:high], geo.size) for low, high in pairwise(edges)]
    results = ordered_map(_search_job, jobs, workers=workers)
    return [solved for chunk in progress(results, total=len(jobs), label="searching") for solved in chunk]


def _solved(path: Path, questions: np.ndarray, lines: np.ndarray, geo: Geometry, workers: int) -> np.ndarray:
    solutions = _search(questions, geo, workers)
    for line, grids in zip(lines, solutions, strict=True):
        if len(grids) != 1:
            how_many = "more than one solution" if grids else "no solution"
            raise UsageError(f"{path}:{line}: the puzzle has {how_many}, and the file gives no answer")
    return np.array([grids[0] for grids in solutions], dtype=np.uint8)


def several_solutions(boards: Boards, *, seed: int, workers: int = 1) -> dict[str, Any]:
    """Count puzzles with more than one solution, whose expected answer cannot be inferred.

    Searches all puzzles, or SEARCHED of them drawn by `seed`: {"searched", "found"}, and "first" (file:line).
    """
    total = len(boards.questions)
    if boards.solved_here:
        return {"searched": total, "found": 0}
    chosen = np.arange(total)
    if total > SEARCHED:
        generator = keyed_numpy(seed, "sudoku/several_solutions")
        chosen = np.sort(generator.choice(total, SEARCHED, replace=False))
    solutions = _search(boards.questions[chosen], geometry(boards.size), workers)
    bad = [number for number, grids in zip(chosen.tolist(), solutions, strict=True) if len(grids) > 1]
    first = {"first": f"{boards.path}:{boards.lines[bad].min()}"} if bad else {}
    return {"searched": len(chosen), "found": len(bad), **first}
