"""One split of a text data set as documents, cut into pieces of at most a block; no piece spans two documents.

N documents, P pieces, T length of a batch (that of its longest piece, rounded up to ROUND), b rows requested.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from dataset.held_back import validation_count
from dataset.text.batches import ROUNDS, shuffled
from dataset.text.stream import TokenStream
from engine.distributed import keyed_numpy
from engine.io import UsageError

ROUND = 8
"""Batches are padded to a multiple of this, for which matrix products are faster."""


class Documents:
    """The pieces of one split; documents longer than a block have several, and their last one has the end token.

    Raises: UsageError for a data set without end-of-document token, or one that cannot be read.
    """

    def __init__(self, root: str | Path, split: str, *, block_size: int) -> None:
        self.stream = TokenStream(root, split)
        end = self.stream.meta.eot
        if end is None:
            raise UsageError(
                f"{root} is one text without documents, whose ends a token would mark: build it from JSON lines, or "
                "with --lines (each line is a document)"
            )
        self.block_size, self.name = block_size, split
        self.tokens = np.asarray(self.stream.tokens)
        last = np.flatnonzero(self.tokens == end) + 1
        if not len(last) or last[-1] != len(self.tokens):
            last = np.append(last, len(self.tokens))
        self._cut(np.concatenate([[0], last[:-1]]), last)

    def _cut(self, first: np.ndarray, last: np.ndarray) -> None:
        block_size = self.block_size
        self.first, self.last = first, last
        """int64 [N]: offsets of the start of each document, and of its end after the end token."""
        counts = -(-(last - first) // block_size)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self.starts = np.repeat(first, counts) + number * block_size
        """int64 [P]: offset of each piece."""
        self.lengths = np.minimum(np.repeat(last, counts) - self.starts, block_size)
        """int64 [P]"""
        self.owners = np.repeat(np.arange(len(first)), counts)
        """int64 [P]: the document of each piece."""

    def __len__(self) -> int:
        """Number of pieces."""
        return len(self.starts)

    @property
    def count(self) -> int:
        """Number of documents."""
        return len(self.first)

    def hold_back(self, seed: int) -> tuple[Documents, Documents]:
        """(training documents, documents held back for validation): one in 20, at most 256, drawn with `seed`."""
        chosen = keyed_numpy(seed, "text/validation").permutation(self.count)[: validation_count(self.count)]
        held = np.zeros(self.count, dtype=bool)
        held[chosen] = True
        parts = copy.copy(self), copy.copy(self)
        for part, kept in zip(parts, (~held, held), strict=True):
            part._cut(self.first[kept], self.last[kept])
        parts[1].name = f"{self.name}, held back"
        return parts

    def document(self, index: int) -> np.ndarray:
        """The tokens of a whole document without its end token; int64 [n]."""
        low, high = int(self.first[index]), int(self.last[index])
        return self.tokens[low : high - (self.tokens[high - 1] == self.stream.meta.eot)].astype(np.int64)

    def length_of(self, pieces: np.ndarray) -> int:
        """T of a batch of pieces [n]."""
        return min(-(-int(self.lengths[pieces].max(initial=1)) // ROUND) * ROUND, self.block_size)

    def rows(self, pieces: np.ndarray, *, pad: int, length: int) -> np.ndarray:
        """The tokens of pieces [b], padded with `pad` to `length`; int64 [b, length]."""
        positions = np.arange(length)
        inside = positions < self.lengths[pieces][:, None]
        at = np.minimum(self.starts[pieces][:, None] + positions, len(self.tokens) - 1)
        return np.where(inside, self.tokens[at], pad).astype(np.int64)


class DocumentBatches:
    """Training batches by step: each piece once per epoch, shuffled anew; a last batch that is not full is dropped.

    A function of (seed, step) alone, on any number of ranks and after a resume.

    Raises: UsageError if there are fewer pieces than a batch has rows.
    """

    def __init__(self, documents: Documents, *, seed: int, batch_size: int, pad: int) -> None:
        self.documents, self.seed, self.batch_size, self.pad = documents, seed, batch_size, pad
        self.steps_per_epoch = len(documents) // batch_size
        if self.steps_per_epoch == 0:
            raise UsageError(
                f"{documents.stream.root} has {len(documents)} pieces of at most {documents.block_size} tokens, fewer "
                f"than the batch of {batch_size}: lower batch_size"
            )
        self._order: tuple[int, np.ndarray] | None = None

    def pieces(self, step: int) -> np.ndarray:
        """The pieces of the global batch of `step`, which counts from 0; int64 [B]."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            keys = keyed_numpy(self.seed, "text/documents", epoch).integers(0, 1 << 63, ROUNDS, dtype=np.uint64)
            count = len(self.documents)
            self._order = (epoch, shuffled(np.arange(count), count, keys))
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def rows(self, step: int, low: int, high: int) -> np.ndarray:
        """Rows [low, high) of the global batch, of the same T on every rank; int64 [high - low, T]."""
        pieces = self.pieces(step)
        return self.documents.rows(pieces[low:high], pad=self.pad, length=self.documents.length_of(pieces))


class EvalDocuments:
    """Evaluation batches: all pieces of a split, or `limit` of them drawn with the evaluation's seed.

    Pieces are sorted by length, which saves padding and changes no figure.
    """

    def __init__(self, documents: Documents, *, seed: int, batch_size: int, pad: int, limit: int | None = None) -> None:
        self.documents, self.batch_size, self.pad = documents, batch_size, pad
        count = len(documents)
        taken = np.arange(count)
        if limit is not None and limit < count:
            taken = np.sort(keyed_numpy(seed, f"text/eval/{documents.stream.split}").permutation(count)[:limit])
        self.taken = taken[np.argsort(documents.lengths[taken], kind="stable")]
        """int64 [n]: the pieces in evaluation order."""

    def __len__(self) -> int:
        return -(-len(self.taken) // self.batch_size)

    @property
    def covers(self) -> str:
        """Description of what is evaluated."""
        return f"{len(self.taken):,} of {len(self.documents):,} pieces of {self.documents.name}"

    def batch(self, index: int, part: int = 0, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(pieces [b], tokens [b, T]) of every `parts`-th row of batch `index`, starting at row `part`."""
        pieces = self.pieces(index)
        own = pieces[part::parts]
        return own, self.documents.rows(own, pad=self.pad, length=self.documents.length_of(pieces))

    def pieces(self, index: int) -> np.ndarray:
        """The pieces of batch `index` on all ranks; int64 [n]."""
        return self.taken[index * self.batch_size : (index + 1) * self.batch_size]

    def batch_with_others(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pieces [n], tokens [n, T], others [n]) of batch `index`; row `others[i]` is of another document than row i.

        A batch with a single document gets one more row: the next piece of another document. If the evaluation has one
        document only, `others` are other pieces of it, or its only piece itself.
        """
        pieces, owners = self.pieces(index), self.documents.owners
        if len(set(owners[pieces].tolist())) == 1:
            order = np.roll(self.taken, -(index + 1) * self.batch_size)
            different = order[owners[order] != owners[pieces[0]]]
            pieces = np.append(pieces, (different if len(different) else order[~np.isin(order, pieces)])[:1])
        rows = self.documents.rows(pieces, pad=self.pad, length=self.documents.length_of(pieces))
        return pieces, rows, rows_of_others(owners[pieces])


def rows_of_others(owners: np.ndarray) -> np.ndarray:
    """For each row of a batch, given the rows' documents `owners` [n], a row of another document if there is one.

    The rows, sorted by document, are rotated by half of the batch. If one document has more than half of the rows, its
    rows that would still be paired with each other take those of other documents in turn. Returns int64 [n].
    """
    order = np.argsort(owners, kind="stable")
    others = np.empty_like(order)
    others[order] = np.roll(order, len(order) // 2)
    same = np.flatnonzero(owners[others] == owners)
    different = np.flatnonzero(owners != owners[same[0]]) if len(same) else same
    if len(different):
        others[same] = np.resize(different, len(same))
    return others
