"""The published form of mazes: CSV with the columns source, question, answer, rating (Maze-Hard, arXiv 2506.21734).

A question is the grid row by row in the characters of `CHARSET` without `o`, an answer the same with the path, a
rating the length of the path.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dataset.maze.paths import CHARSET, GOAL, START, judge, path_lengths
from dataset.tables import SEPARATORS, refuse_foreign, refuse_twice
from engine.io import UsageError, atomic_write_text

COLUMNS = ("source", "question", "answer", "rating")
TOKENS = {char: token for token, char in enumerate(CHARSET, start=1)}


def read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read mazes and answers, uint8 token grids [N, S, S].

    Raises: UsageError naming file and line of the first row that is not a maze with a path from S to G.
    """
    rows = list(_rows(path))
    if not rows:
        raise UsageError(f"{path} holds no maze")
    side = math.isqrt(len(rows[0][1]))
    if side < 2 or side * side != len(rows[0][1]):
        raise UsageError(f"{path}:{rows[0][0]}: question has {len(rows[0][1])} cells, expected a square number")
    grids: tuple[list[list[int]], list[list[int]]] = ([], [])
    for line, *texts in rows:
        for name, text, into in zip(("question", "answer"), texts, grids, strict=True):
            if len(text) != side * side:
                raise UsageError(f"{path}:{line}: {name} has {len(text)} cells, expected {side * side}")
            unknown = next((char for char in text if char not in TOKENS), None)
            if unknown is not None:
                raise UsageError(f"{path}:{line}: {name} has the character {unknown!r}, expected one of {CHARSET!r}")
            into.append([TOKENS[char] for char in text])
    mazes, answers = (np.array(part, dtype=np.uint8).reshape(-1, side, side) for part in grids)
    for token, char in ((START, "S"), (GOAL, "G")):
        counts = (mazes == token).reshape(len(mazes), -1).sum(axis=1)
        _refuse(path, rows, counts != 1, f"question needs exactly one {char}")
    _refuse(path, rows, ~judge(mazes, answers).path, "answer is not a path from S to G in the maze of the question")
    return mazes, answers


def _refuse(path: Path, rows: list[tuple[int, str, str]], bad: np.ndarray, text: str) -> None:
    """Raise UsageError with the line of the first bad row."""
    if bad.any():
        raise UsageError(f"{path}:{rows[int(bad.argmax())][0]}: {text}")


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, question, answer) of each row. Column names are stripped and lowered; in cells a space is a free cell."""
    try:
        refuse_foreign(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(SEPARATORS, key=header.count))
            names = [name.strip().lower() for name in next(reader, [])]
            if missing := [name for name in ("question", "answer") if name not in names]:
                raise UsageError(f"{path} has no column {missing[0]}: expected {', '.join(COLUMNS)}")
            refuse_twice(str(path), names, ("question", "answer"))
            question, answer = names.index("question"), names.index("answer")
            for row in reader:
                if row:
                    cells = [*row, *[""] * len(names)]
                    yield reader.line_num, cells[question], cells[answer]
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: expected a folder with train.csv and test.csv") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not a readable CSV file: {error}") from None


def write_csv(path: Path, mazes: np.ndarray, answers: np.ndarray, source: str) -> None:
    """Write mazes [N, S, S] in the published form."""
    chars = np.array(["?", *CHARSET])
    lengths = path_lengths(mazes)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for maze, answer, length in zip(mazes, answers, lengths.tolist(), strict=True):
        question, solved = ("".join(chars[grid.reshape(-1)]) for grid in (maze, answer))
        table.writerow((source, question, solved, length))
    atomic_write_text(path, text.getvalue())
