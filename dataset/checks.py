"""Checks of a grid data set: tokens within the vocabulary, counts and card that agree with the arrays.

And of a file in use: that it is not truncated.

N examples, T sequence length.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.io import RunFailure, UsageError

if TYPE_CHECKING:
    from dataset.format import PuzzleSplit
    from dataset.metadata import PuzzleMetadata

# An array up to this size is read completely when it is opened. Of a larger one as many bytes are read, in blocks
# spread over it, and every batch is checked when it is drawn.
SCANNED_BYTES, BLOCK_BYTES = 256 << 20, 4 << 20
# (file, its time and size, vocabulary, ignored label) of the arrays that passed, so that none is read twice.
_passed: set[tuple[Any, ...]] = set()


def check_tokens(path: Path, array: np.ndarray, metadata: PuzzleMetadata, *, labels: bool) -> bool:
    """Check the tokens of inputs or labels [N, T]; returns whether every row was read.

    Raises: UsageError naming file, row and token of the first one that is not below vocab_size (nor, in labels, the
    ignored one), and if no label is scored.
    """
    rows = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    whole = array.nbytes <= SCANNED_BYTES
    ignored = metadata.ignore_label_id if labels else None
    status = path.stat()
    key = (str(path.absolute()), status.st_mtime_ns, status.st_size, metadata.vocab_size, ignored, labels)
    if key in _passed:
        return whole
    starts = range(0, len(array), rows)
    if not whole:
        blocks = max(2, SCANNED_BYTES // BLOCK_BYTES)
        starts = range(0, len(array), max(rows, len(array) // blocks))
    scored = False
    for first in starts:
        block = np.asarray(array[first : first + rows])
        check_rows(path, block, np.arange(first, first + len(block)), metadata, labels=labels)
        scored = scored or ignored is None or bool((block != ignored).any())
    if labels and len(array) and not scored:
        raise UsageError(f"{path}: every label is ignore_label_id={ignored} (dataset.json): nothing would be scored")
    _passed.add(key)
    return whole


def check_rows(path: Path, block: np.ndarray, numbers: np.ndarray, metadata: PuzzleMetadata, *, labels: bool) -> None:
    """Check rows [n, T] of an array; `numbers` [n] are their places in it, for the message. Raises: UsageError."""
    size = metadata.vocab_size
    if not block.size or (block.min() >= 0 and block.max() < size):
        return
    bad = (block < 0) | (block >= size)
    if labels and metadata.ignore_label_id is not None:
        bad &= block != metadata.ignore_label_id
    if bad.any():
        row, position = map(int, np.argwhere(bad)[0])
        raise UsageError(
            f"{path}: row {numbers[row]} has the token {int(block[row, position])} at position {position}, but "
            f"vocab_size is {size} in dataset.json (tokens 0 to {size - 1}): the files belong to different data sets, "
            "or are damaged"
        )


def check_counts(root: Path, split: str, metadata: PuzzleMetadata, sets: Sequence[PuzzleSplit]) -> None:
    """Raise UsageError if dataset.json counts other groups, puzzles or examples than the arrays of all sets hold."""
    path = root / split / "dataset.json"
    groups, puzzles, examples = (
        sum(numbers)
        for numbers in zip(*((part.num_groups, part.num_puzzles, part.num_examples) for part in sets), strict=True)
    )

    def agree(key: str, declared: float, *measured: float, slack: float = 0.0) -> None:
        if not any(math.isclose(declared, number, rel_tol=slack) for number in measured):
            raise UsageError(f"{path}: {key} is {declared:g}, the arrays hold {measured[0]:g}")

    agree("total_groups", metadata.total_groups, groups)
    agree("total_puzzles", metadata.total_puzzles, puzzles, groups)  # TRM's Sudoku builder stores the groups here
    if puzzles:
        agree("mean_puzzle_examples", metadata.mean_puzzle_examples, examples / puzzles, slack=0.01)


def check_card(path: Path, card: dict[str, Any], metadata: PuzzleMetadata) -> None:
    """Raise UsageError if dataset.json contradicts the card.json of the same data set."""
    for key in ("vocab_size", "seq_len", "data_mode", "pad_id", "ignore_label_id", "blank_identifier_id"):
        declared = getattr(metadata, key)
        if key in card and card[key] != declared:
            raise UsageError(
                f"{path}: {key} is {declared}, but was {card[key]} when the data set was built (card.json): put it back"
            )


class WatchedFile:
    """A memory-mapped file whose truncation is noticed: reading beyond its end would kill the process (SIGBUS)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._handle).st_size
        weakref.finalize(self, os.close, self._handle)

    def require_whole(self) -> None:
        """Call before each read. Raises: RunFailure if the file was truncated; a replaced file stays mapped."""
        now = os.fstat(self._handle).st_size
        if now < self._size:
            raise RunFailure(
                f"{self.path} was cut short while it was in use ({now} bytes, {self._size} when it was opened): put "
                "it back, and the same command resumes"
            )
