"""What a grid data set must not hold: tokens beyond its vocabulary, and counts or a card that its arrays contradict.

And what must not happen to a file in use: that it is cut short.

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

# An array up to this size is read through when it is opened; of a larger one blocks spread over it are, as much in
# all, and every batch is examined when it is drawn.
SCANNED_BYTES, BLOCK_BYTES = 256 << 20, 4 << 20
# (file, its time and size, vocabulary, label that is not scored): what is known to be right is not read again.
_known: set[tuple[Any, ...]] = set()


def check_tokens(path: Path, array: np.ndarray, metadata: PuzzleMetadata, *, labels: bool) -> bool:
    """Look through inputs or labels [N, T]; whether all of it was seen.

    Raises: UsageError naming file, row and token of the first that is neither below vocab_size nor (of labels) the
    ignored one, and labels none of which is scored.
    """
    rows = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    whole = array.nbytes <= SCANNED_BYTES
    ignored = metadata.ignore_label_id if labels else None
    status = path.stat()
    seen = (str(path.absolute()), status.st_mtime_ns, status.st_size, metadata.vocab_size, ignored, labels)
    if seen in _known:
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
    _known.add(seen)
    return whole


def check_rows(path: Path, block: np.ndarray, numbers: np.ndarray, metadata: PuzzleMetadata, *, labels: bool) -> None:
    """The same for some rows [n, T] of an array, which have these numbers [n] in it. Raises: UsageError."""
    size = metadata.vocab_size
    if not block.size or (block.min() >= 0 and block.max() < size):
        return
    bad = (block < 0) | (block >= size)
    if labels and metadata.ignore_label_id is not None:
        bad &= block != metadata.ignore_label_id
    if bad.any():
        row, place = map(int, np.argwhere(bad)[0])
        raise UsageError(
            f"{path}: row {numbers[row]} has the token {int(block[row, place])} at position {place}, but vocab_size is "
            f"{size} in dataset.json (tokens 0 to {size - 1}): the files belong to different data sets, or are damaged"
        )


def check_counts(root: Path, split: str, metadata: PuzzleMetadata, sets: Sequence[PuzzleSplit]) -> None:
    """Raise UsageError where dataset.json counts other groups, puzzles or examples than the arrays of all sets hold."""
    path = root / split / "dataset.json"
    groups, puzzles, examples = (
        sum(numbers)
        for numbers in zip(*((part.num_groups, part.num_puzzles, part.num_examples) for part in sets), strict=True)
    )

    def agree(key: str, declared: float, *measured: float, slack: float = 0.0) -> None:
        if not any(math.isclose(declared, number, rel_tol=slack) for number in measured):
            raise UsageError(f"{path}: {key} is {declared:g}, the arrays hold {measured[0]:g}")

    agree("total_groups", metadata.total_groups, groups)
    agree("total_puzzles", metadata.total_puzzles, puzzles, groups)  # TRM's Sudoku builder writes the groups there
    if puzzles:
        agree("mean_puzzle_examples", metadata.mean_puzzle_examples, examples / puzzles, slack=0.01)


def check_card(path: Path, card: dict[str, Any], metadata: PuzzleMetadata) -> None:
    """Raise UsageError where dataset.json contradicts the card that was written beside it."""
    for key in ("vocab_size", "seq_len", "data_mode", "pad_id", "ignore_label_id", "blank_identifier_id"):
        declared = getattr(metadata, key)
        if key in card and card[key] != declared:
            raise UsageError(
                f"{path}: {key} is {declared}, but was {card[key]} when the data set was built (card.json): put it back"
            )


class WatchedFile:
    """A file that is mapped into memory: where it is cut short meanwhile, reading beyond its end kills the process."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._handle).st_size
        weakref.finalize(self, os.close, self._handle)

    def require_whole(self) -> None:
        """Ask before each reading. A file that is replaced is no harm, the mapped one lives on. Raises: RunFailure."""
        now = os.fstat(self._handle).st_size
        if now < self._size:
            raise RunFailure(
                f"{self.path} was cut short while it was in use ({now} bytes, {self._size} when it was opened): put "
                "it back, and the same command resumes"
            )
