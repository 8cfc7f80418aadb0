"""Reading the public Sudoku CSV files: columns source, question, answer, rating; '.' or 0 is a blank."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataset.sudoku.grid import BOXES, Geometry, geometry, size_of, valid_solutions
from engine.io import UsageError

COLUMNS = ("question", "answer", "rating")
# Rows are checked in vectorised pieces; the public train file has 3.8 million.
PIECE = 1 << 16


@dataclass
class Boards:
    """Puzzles of one file."""

    size: int
    questions: np.ndarray
    """uint8 [N, cells], 0 = blank."""
    answers: np.ndarray
    """uint8 [N, cells]"""
    ratings: np.ndarray
    """int32 [N], the file's own difficulty."""
    rows_read: int = 0

    def take(self, chosen: np.ndarray) -> Boards:
        """The puzzles of these numbers, in that order."""
        return Boards(self.size, self.questions[chosen], self.answers[chosen], self.ratings[chosen], self.rows_read)

    def rating_histogram(self) -> dict[str, int]:
        """Puzzles per rating."""
        return {str(rating): count for rating, count in sorted(Counter(self.ratings.tolist()).items())}


@dataclass
class _Piece:
    lines: list[int] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    ratings: list[int] = field(default_factory=list)


def _digits(texts: list[str], cells: int) -> np.ndarray:
    """Characters as digits, '.' as 0; anything else becomes a number above 9."""
    joined = "".join(texts).replace(".", "0").encode("latin-1", "replace")
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(texts), cells) - np.uint8(ord("0"))


def _check(path: Path, piece: _Piece, geo: Geometry) -> tuple[np.ndarray, np.ndarray]:
    questions, answers = _digits(piece.questions, geo.cells), _digits(piece.answers, geo.cells)

    def first_bad(bad: Any, text: str) -> None:
        if bad.any():
            raise UsageError(f"{path}:{piece.lines[int(bad.argmax())]}: {text}")

    digits = f"1 to {geo.size}"
    first_bad((questions > geo.size).any(axis=1), f"question has a character other than '.', 0 and {digits}")
    first_bad(((answers > geo.size) | (answers == 0)).any(axis=1), f"answer has a character other than {digits}")
    first_bad(((questions > 0) & (questions != answers)).any(axis=1), "answer contradicts a given of the question")
    first_bad(~valid_solutions(answers, geo), "answer is no Sudoku solution: a row, column or box repeats a digit")
    return questions, answers


def _pieces(path: Path, want: int | None) -> Iterator[tuple[int, _Piece]]:
    """Rows as (board size, piece), lengths checked."""
    with open(path, newline="", encoding="utf-8", errors="replace") as stream:
        reader = csv.reader(stream)
        header = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise UsageError(f"{path}:1: expected the columns source,question,answer,rating; {missing[0]} is missing")
        question, answer, rating = (header.index(name) for name in COLUMNS)
        size, piece = want, _Piece()
        try:
            for row in reader:
                if not row:
                    continue
                here = f"{path}:{reader.line_num}"
                if len(row) != len(header):
                    raise UsageError(f"{here}: expected {len(header)} columns, found {len(row)}")
                if size is None:
                    size = size_of(len(row[question]))
                    if size is None:
                        known = ", ".join(str(n * n) for n in BOXES)
                        raise UsageError(f"{here}: question has {len(row[question])} cells, expected one of {known}")
                for name, text in (("question", row[question]), ("answer", row[answer])):
                    if len(text) != size * size:
                        raise UsageError(f"{here}: {name} has {len(text)} cells, expected {size * size}")
                try:
                    piece.ratings.append(int(row[rating]))
                except ValueError:
                    raise UsageError(f"{here}: rating must be a whole number, got {row[rating]!r}") from None
                piece.lines.append(reader.line_num)
                piece.questions.append(row[question])
                piece.answers.append(row[answer])
                if len(piece.lines) == PIECE:
                    yield size, piece
                    piece = _Piece()
        except csv.Error as error:
            raise UsageError(f"{path}:{reader.line_num}: {error}") from None
    if piece.lines:
        assert size is not None
        yield size, piece


def read_csv(path: str | Path, *, size: int | None = None, min_difficulty: int = 0) -> Boards:
    """The puzzles of a CSV file whose rating is at least `min_difficulty`.

    Raises: UsageError naming file and line of the first row that is not a puzzle with its solution.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist: --input wants a CSV file, or a folder with train.csv and test.csv")
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    read = 0
    found = size or 9  # what the first row settles, when `size` is None
    for found, piece in _pieces(path, size):
        questions, answers = _check(path, piece, geometry(found))
        ratings = np.clip(piece.ratings, 0, 2**31 - 1).astype(np.int32)
        keep = ratings >= min_difficulty
        parts.append((questions[keep], answers[keep], ratings[keep]))
        read += len(keep)
    if not read:
        raise UsageError(f"{path} holds no puzzle")
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    boards = Boards(found, joined[0], joined[1], joined[2], read)
    if not len(boards.ratings):
        raise UsageError(f"{path}: none of {read} puzzles has a rating >= {min_difficulty}: lower --min-difficulty")
    return boards
