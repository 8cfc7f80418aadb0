"""Reads the rows of Sudoku files in common forms: CSV of any separator with a header, or boards without one.

    source,question,answer,rating        the public Sudoku-Extreme files
    puzzle,solution                      Kaggle; quizzes,solutions too; no rating
    4...3.......6..8....(81 in all)      a list: one board a line, with or without its solution; # begins a comment

Separators are `,`, `;`, tab and `|`, in a list white space, too. A byte order mark, spaces around cells, empty lines
and Excel's `sep=` line are skipped; any line ending is accepted.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dataset.sudoku.grid import BOXES, size_of
from dataset.tables import SEPARATORS, refuse_foreign, refuse_twice
from engine.io import UsageError

BLANKS = ".0-*_"
NAMES = {
    "question": ("question", "questions", "puzzle", "puzzles", "quiz", "quizzes", "board", "boards"),
    "answer": ("answer", "answers", "solution", "solutions"),
    "rating": ("rating", "ratings", "difficulty"),
}
"""Accepted names of the columns, in lower case; the first one in the header is used."""
BOARD = frozenset(BLANKS + "123456789")


@dataclass(frozen=True)
class Layout:
    """Column indices; None for a column that the file does not have."""

    columns: int | None
    """Number of cells of every row; None in a list, whose rows may differ."""
    question: int
    answer: int | None
    rating: int | None


@dataclass(frozen=True)
class Row:
    """One puzzle as text, not yet checked."""

    line: int
    question: str
    answer: str | None
    rating: str | None


def is_board(cell: str) -> bool:
    """Whether a cell may be a board: the right length, digits and blanks only."""
    return size_of(len(cell)) is not None and BOARD.issuperset(cell)


def read_rows(path: Path, flag: str = "--input") -> tuple[Layout, Iterator[Row]]:
    """The layout of a file and an iterator over its rows; `flag`: that with which it was given, for messages.

    Raises: UsageError naming file and line, at once or during iteration.
    """
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        folder = ", or a folder with train.csv and test.csv" if flag == "--input" else ""
        raise UsageError(f"{path} {what}: {flag} takes a CSV file{folder}")
    refuse_foreign(path)
    cells = _cells(path)
    try:
        line, first = next(cells)
    except StopIteration:
        raise UsageError(f"{path} holds no puzzle") from None
    listed = any(is_board(cell) for cell in first)
    layout = _list_layout(first) if listed else _table_layout(path, line, first)
    rest = itertools.chain([(line, first)], cells) if listed else cells
    return layout, (_row(path, layout, line, cells) for line, cells in rest)


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, stripped cells) of every row that is neither empty nor a comment."""
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as stream:
        separator, skip = _separator(stream)
        stream.seek(0)
        split: Iterator[tuple[int, list[str]]]
        if separator is None:
            split = ((number, text.split()) for number, text in enumerate(stream, start=1))
        else:
            split = _table(path, stream, separator)
        for number, fields in split:
            cells = [cell.strip().strip("\ufeff") for cell in fields]
            if number > skip and any(cells) and not cells[0].startswith("#"):
                yield number, cells


def _table(path: Path, stream: IO[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(stream, delimiter=separator, skipinitialspace=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.line_num}: {error}") from None


def _separator(stream: IO[str]) -> tuple[str | None, int]:
    """(separator, or None for white space; number of the `sep=` line in which Excel may name it, else 0)."""
    for number in itertools.count(1):
        line = stream.readline(1 << 16)
        text = line.strip().strip("\ufeff")
        if line and (not text or text.startswith("#")):
            continue
        if text.lower().startswith("sep=") and len(text) == 5:
            return text[4], number
        counts = {separator: line.count(separator) for separator in SEPARATORS}
        most = max(counts, key=lambda separator: counts[separator])
        # A line without a separator is split at white space, which only lists have.
        return (most if counts[most] or not line.strip() else None), 0
    raise AssertionError("unreachable")


def _list_layout(first: list[str]) -> Layout:
    boards = [number for number, cell in enumerate(first) if is_board(cell)]
    return Layout(None, boards[0], boards[1] if len(boards) > 1 else None, None)


def _table_layout(path: Path, line: int, header: list[str]) -> Layout:
    names = [name.lower() for name in header]
    place = {what: next((names.index(name) for name in known if name in names), None) for what, known in NAMES.items()}
    question = place["question"]
    if question is None:
        sizes = ", ".join(str(size * size) for size in BOXES)
        columns = ",".join(header)
        raise UsageError(
            f"{path}:{line}: expected a header with the columns question,answer,rating (or puzzle,solution, or "
            f"quizzes,solutions), or boards of {sizes} cells; found {columns[:60]!r}"
        )
    refuse_twice(f"{path}:{line}", names, [names[number] for number in place.values() if number is not None])
    return Layout(len(header), question, place["answer"], place["rating"])


def _row(path: Path, layout: Layout, line: int, cells: list[str]) -> Row:
    last = max(place for place in (layout.question, layout.answer, layout.rating) if place is not None)
    if layout.columns is not None and len(cells) != layout.columns:
        raise UsageError(f"{path}:{line}: expected {layout.columns} columns, found {len(cells)}")
    if len(cells) <= last:
        raise UsageError(f"{path}:{line}: expected at least {last + 1} columns, found {len(cells)}")
    return Row(
        line,
        cells[layout.question],
        None if layout.answer is None else cells[layout.answer],
        None if layout.rating is None else cells[layout.rating],
    )
