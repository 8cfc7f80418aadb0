"""Exact vote counting in bounded memory.

A question is one test grid of one task. The answer to every augmented copy is a vote for a grid, identified by its key,
with the halting head's confidence. Second choices are not votes: they rank after all answers with votes, so they matter
where the copies agree. Each distinct answer takes a few numbers; grids are kept only for the top answers of each
question. This is exact: every vote for an answer brings its grid, and after its last vote an answer can be overtaken
but cannot overtake (counts only grow, and a mean confidence changes only with votes). So an answer that is among the
top in the end has been so since its last vote.

n votes, A different answers so far, T cells of a canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PENDING = 8192
"""Votes buffered before they are counted; their grids take 7 MB on the canvas of ARC."""


@dataclass(frozen=True)
class Answers:
    """Distinct answers, one per row."""

    question: np.ndarray
    """[A] int64"""
    key: np.ndarray
    """[A, 2] uint64"""
    votes: np.ndarray
    """[A] int64"""
    total: np.ndarray
    """[A] float64, sum of the confidences in the order of the votes."""
    first: np.ndarray
    """[A] int64, index of the first vote; breaks ties."""
    grid: np.ndarray
    """[A] int64, row of `grids`; -1 if the grid is not kept."""
    grids: np.ndarray
    """[kept, T] uint8 codes"""

    @property
    def confidence(self) -> np.ndarray:
        """[A] mean over the votes; 0 for second choices."""
        mean: np.ndarray = self.total / np.maximum(self.votes, 1)
        return mean


class Votes:
    """Counts votes; ranks the answers of a question by votes, then mean confidence, then first appearance."""

    def __init__(self, length: int, keep: int) -> None:
        """`length`: T; `keep`: number of top answers per question whose grids are kept."""
        self.length, self.keep, self.cast = length, keep, 0
        empty = np.empty(0, dtype=np.int64)
        self._answers = Answers(
            empty,
            np.empty((0, 2), dtype=np.uint64),
            empty,
            np.empty(0),
            empty,
            empty,
            np.empty((0, length), dtype=np.uint8),
        )
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self._waiting = 0

    def add(
        self, question: np.ndarray, key: np.ndarray, confidence: np.ndarray, codes: np.ndarray, *, second: bool = False
    ) -> None:
        """Add one vote (or second choice) per row: question [n], key [n, 2], confidence [n], codes [n, T] or [n, C,
        C]."""
        if not len(question):
            return
        counted = np.full(len(question), not second, dtype=np.int64)
        self._pending.append((question, key, confidence * counted, codes.reshape(len(codes), -1), counted))
        self._waiting += len(question)
        if self._waiting >= PENDING:
            self._count()

    def answers(self) -> Answers:
        """All answers, grouped by question, the top one first."""
        self._count()
        return self._answers

    def _count(self) -> None:
        if not self._pending:
            return
        question, key, confidence, codes, counted = (np.concatenate(part) for part in zip(*self._pending, strict=True))
        self._pending, self._waiting = [], 0
        old, new = self._answers, len(question)
        numbers = self.cast + np.arange(new)
        self.cast += new
        # Old answers come before new votes, so sums are in the order of the votes, bit for bit.
        question = np.concatenate([old.question, question])
        key = np.concatenate([old.key, key])
        votes = np.concatenate([old.votes, counted])
        total = np.concatenate([old.total, confidence.astype(np.float64)])
        first = np.concatenate([old.first, numbers])
        grid = np.concatenate([old.grid, len(old.grids) + np.arange(new)])

        order = np.lexsort((key[:, 1], key[:, 0], question))
        sorted_question, sorted_key = question[order], key[order]
        is_start = np.ones(len(order), dtype=bool)
        is_start[1:] = (sorted_question[1:] != sorted_question[:-1]) | (sorted_key[1:] != sorted_key[:-1]).any(1)
        starts = np.flatnonzero(is_start)
        owner = np.empty(len(order), dtype=np.int64)
        owner[order] = np.cumsum(is_start) - 1
        answers = Answers(
            sorted_question[starts],
            sorted_key[starts],
            np.add.reduceat(votes[order], starts),
            np.bincount(owner, weights=total, minlength=len(starts)),
            np.minimum.reduceat(first[order], starts),
            np.maximum.reduceat(grid[order], starts),
            old.grids,
        )
        self._answers = self._ranked(answers, codes)

    def _ranked(self, answers: Answers, codes: np.ndarray) -> Answers:
        """Sort by rank and drop the grids of answers that are not among the top; `codes` are the grids after
        `answers.grids`."""
        order = np.lexsort((answers.first, -answers.confidence, -answers.votes, answers.question))
        question, grid = answers.question[order], answers.grid[order]
        kept = np.flatnonzero((ranks(question) < self.keep) & (grid >= 0))
        source, held = grid[kept], len(answers.grids)
        grids = np.empty((len(kept), self.length), dtype=np.uint8)
        grids[source < held] = answers.grids[source[source < held]]
        grids[source >= held] = codes[source[source >= held] - held]
        grid_row = np.full(len(question), -1, dtype=np.int64)
        grid_row[kept] = np.arange(len(kept))
        return Answers(
            question,
            answers.key[order],
            answers.votes[order],
            answers.total[order],
            answers.first[order],
            grid_row,
            grids,
        )


def ranks(question: np.ndarray) -> np.ndarray:
    """Rank of each row within its question, from 0: question [A], grouped -> [A]."""
    starts = np.flatnonzero(np.r_[True, question[1:] != question[:-1]]) if len(question) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(question)])
    rank: np.ndarray = np.arange(len(question)) - np.repeat(starts, sizes)
    return rank
