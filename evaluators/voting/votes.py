"""Votes for answers, counted exactly in bounded memory.

A question is one test grid of one task; every augmented copy of it that a model answers is a vote for a grid,
distinguished by key, with the halting head's confidence. A second choice is not a vote: it ranks behind all answers
that got one, so it counts where the copies agree. Per different answer a few numbers are kept, and the grids
themselves only of the leading answers of each question. That loses nothing: an answer brings its grid with every vote
for it, and after its last vote others can overtake it but it overtakes none (counts only grow, and a mean confidence
changes with votes only). So an answer among the leading ones in the end has been among them since its last vote.

n votes, A different answers so far, T cells of a canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PENDING = 8192
"""Votes that wait to be counted: their grids take 7 MB on the canvas of ARC."""


@dataclass(frozen=True)
class Answers:
    """Different answers, one row each."""

    question: np.ndarray
    """[A] int64"""
    key: np.ndarray
    """[A, 2] uint64"""
    votes: np.ndarray
    """[A] int64"""
    total: np.ndarray
    """[A] float64, confidences summed in the order of the votes."""
    first: np.ndarray
    """[A] int64, number of the first vote: the order among equals."""
    grid: np.ndarray
    """[A] int64, row of `grids`; -1 where the grid is not kept."""
    grids: np.ndarray
    """[kept, T] uint8 codes"""

    @property
    def confidence(self) -> np.ndarray:
        """[A] mean over the votes; 0 of second choices."""
        mean: np.ndarray = self.total / np.maximum(self.votes, 1)
        return mean


class Votes:
    """Takes votes, gives answers by question in order of votes, then mean confidence, then first appearance."""

    def __init__(self, length: int, keep: int) -> None:
        """`length` T; `keep` how many leading answers of a question keep their grids."""
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
        """One vote a row, or one second choice: question [n], key [n, 2], confidence [n], codes [n, T] or [n, C, C]."""
        if not len(question):
            return
        counted = np.full(len(question), not second, dtype=np.int64)
        self._pending.append((question, key, confidence * counted, codes.reshape(len(codes), -1), counted))
        self._waiting += len(question)
        if self._waiting >= PENDING:
            self._count()

    def answers(self) -> Answers:
        """All answers, those of a question together, the leading one first."""
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
        # Old answers stand before new votes, so sums grow in the order of the votes, to the last bit.
        question = np.concatenate([old.question, question])
        key = np.concatenate([old.key, key])
        votes = np.concatenate([old.votes, counted])
        total = np.concatenate([old.total, confidence.astype(np.float64)])
        first = np.concatenate([old.first, numbers])
        grid = np.concatenate([old.grid, len(old.grids) + np.arange(new)])

        order = np.lexsort((key[:, 1], key[:, 0], question))
        sorted_question, sorted_key = question[order], key[order]
        begins = np.ones(len(order), dtype=bool)
        begins[1:] = (sorted_question[1:] != sorted_question[:-1]) | (sorted_key[1:] != sorted_key[:-1]).any(1)
        starts = np.flatnonzero(begins)
        owner = np.empty(len(order), dtype=np.int64)
        owner[order] = np.cumsum(begins) - 1
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
        """Sorted by rank, and without the grids that do not lead; `codes` are the grids beyond `answers.grids`."""
        order = np.lexsort((answers.first, -answers.confidence, -answers.votes, answers.question))
        question, grid = answers.question[order], answers.grid[order]
        kept = np.flatnonzero((ranks(question) < self.keep) & (grid >= 0))
        source, held = grid[kept], len(answers.grids)
        grids = np.empty((len(kept), self.length), dtype=np.uint8)
        grids[source < held] = answers.grids[source[source < held]]
        grids[source >= held] = codes[source[source >= held] - held]
        place = np.full(len(question), -1, dtype=np.int64)
        place[kept] = np.arange(len(kept))
        return Answers(
            question,
            answers.key[order],
            answers.votes[order],
            answers.total[order],
            answers.first[order],
            place,
            grids,
        )


def ranks(question: np.ndarray) -> np.ndarray:
    """The place of each row among those of its question, from 0: question [A], equal ones together -> [A]."""
    begins = np.flatnonzero(np.r_[True, question[1:] != question[:-1]]) if len(question) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[begins, len(question)])
    placed: np.ndarray = np.arange(len(question)) - np.repeat(begins, sizes)
    return placed
