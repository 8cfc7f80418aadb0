"""One split of a text data set as documents, cut into pieces of at most a block: no piece spans two documents.

N documents, P pieces, T positions of a batch (those of its longest piece, in steps of ROUND), b rows asked for.
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
"""Batches are padded to a multiple of this: matrix products of such lengths are faster."""


class Documents:
    """The pieces of one split, each with its end token where the document ends; a longer document gives several.

    Raises: UsageError for a data set whose documents have no end token, or that cannot be read.
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
        """int64 [N]: where each document begins and, its end token included, ends."""
        counts = -(-(last - first) // block_size)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self.starts = np.repeat(first, counts) + number * block_size
        """int64 [P]: where each piece begins."""
        self.lengths = np.minimum(np.repeat(last, counts) - self.starts, block_size)
        """int64 [P]"""
        self.owners = np.repeat(np.arange(len(first)), counts)
        """int64 [P]: the document that each piece is of."""

    def __len__(self) -> int:
        """Pieces."""
        return len(self.starts)

    @property
    def count(self) -> int:
        """Documents."""
        return len(self.first)

    def hold_back(self, seed: int) -> tuple[Documents, Documents]:
        """(the others, the documents that are held back for validation): one in 20, at most 256, drawn with `seed`."""
        chosen = keyed_numpy(seed, "text/validation").permutation(self.count)[: validation_count(self.count)]
        held = np.zeros(self.count, dtype=bool)
        held[chosen] = True
        parts = copy.copy(self), copy.copy(self)
        for part, kept in zip(parts, (~held, held), strict=True):
            part._cut(self.first[kept], self.last[kept])
        parts[1].name = f"{self.name}, held back"
        return parts

    def document(self, index: int) -> np.ndarray:
        """int64 [n]: a whole document without its end token."""
        low, high = int(self.first[index]), int(self.last[index])
        return self.tokens[low : high - (self.tokens[high - 1] == self.stream.meta.eot)].astype(np.int64)

    def length_of(self, pieces: np.ndarray) -> int:
        """T of a batch of these pieces."""
        return min(-(-int(self.lengths[pieces].max(initial=1)) // ROUND) * ROUND, self.block_size)

    def rows(self, pieces: np.ndarray, *, pad: int, length: int) -> np.ndarray:
        """int64 [b, length]: pieces with `pad` behind their ends."""
        places = np.arange(length)
        inside = places < self.lengths[pieces][:, None]
        at = np.minimum(self.starts[pieces][:, None] + places, len(self.tokens) - 1)
        return np.where(inside, self.tokens[at], pad).astype(np.int64)


class DocumentBatches:
    """Training batches by step: each piece once an epoch in an order of that epoch; what does not fill a batch is left.

    A function of (seed, step), so a resume and any number of ranks need no more. Raises: UsageError for fewer pieces
    than a batch has rows.
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
        """int64 [B]: the pieces of the global batch of `step`, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            keys = keyed_numpy(self.seed, "text/documents", epoch).integers(0, 1 << 63, ROUNDS, dtype=np.uint64)
            count = len(self.documents)
            self._order = (epoch, shuffled(np.arange(count), count, keys))
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def rows(self, step: int, low: int, high: int) -> np.ndarray:
        """int64 [high - low, T]: rows of the global batch, as long as its longest on every rank."""
        pieces = self.pieces(step)
        return self.documents.rows(pieces[low:high], pad=self.pad, length=self.documents.length_of(pieces))


class EvalDocuments:
    """Batches for an evaluation: all pieces of a split in order, or `limit` of them drawn with the evaluation's seed.

    Pieces of like length share a batch, which saves padding and changes no figure.
    """

    def __init__(self, documents: Documents, *, seed: int, batch_size: int, pad: int, limit: int | None = None) -> None:
        self.documents, self.batch_size, self.pad = documents, batch_size, pad
        count = len(documents)
        taken = np.arange(count)
        if limit is not None and limit < count:
            taken = np.sort(keyed_numpy(seed, f"text/eval/{documents.stream.split}").permutation(count)[:limit])
        self.taken = taken[np.argsort(documents.lengths[taken], kind="stable")]
        """int64 [n]: the pieces, in the order in which they are evaluated."""

    def __len__(self) -> int:
        return -(-len(self.taken) // self.batch_size)

    @property
    def covers(self) -> str:
        """What is evaluated, in words."""
        return f"{len(self.taken):,} of {len(self.documents):,} pieces of {self.documents.name}"

    def batch(self, index: int, part: int = 0, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(piece numbers [b], tokens [b, T]) of every `parts`-th row of batch `index`, from row `part` on."""
        pieces = self.pieces(index)
        own = pieces[part::parts]
        return own, self.documents.rows(own, pad=self.pad, length=self.documents.length_of(pieces))

    def pieces(self, index: int) -> np.ndarray:
        """int64 [n]: the numbers of the pieces of batch `index`, on all ranks."""
        return self.taken[index * self.batch_size : (index + 1) * self.batch_size]

    def batch_with_others(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(piece numbers [n], tokens [n, T], others [n]) of batch `index`, where row `others[i]` is of another document
        than row i. A batch of one document alone, so one of a single row, gets a row more: the next piece of another.

        Where the evaluation has one document only, `others` are other pieces of it; of its only piece, itself.
        """
        pieces, owners = self.pieces(index), self.documents.owners
        if len(set(owners[pieces].tolist())) == 1:
            order = np.roll(self.taken, -(index + 1) * self.batch_size)
            different = order[owners[order] != owners[pieces[0]]]
            pieces = np.append(pieces, (different if len(different) else order[~np.isin(order, pieces)])[:1])
        rows = self.documents.rows(pieces, pad=self.pad, length=self.documents.length_of(pieces))
        return pieces, rows, rows_of_others(owners[pieces])


def rows_of_others(owners: np.ndarray) -> np.ndarray:
    """int64 [n]: for each row of a batch of documents `owners` [n] one of another document, where there is one.

    A permutation by half of the batch in the order of documents; what that leaves within the one document that has more
    than half of the rows takes those of others in turn.
    """
    order = np.argsort(owners, kind="stable")
    others = np.empty_like(order)
    others[order] = np.roll(order, len(order) // 2)
    same = np.flatnonzero(owners[others] == owners)
    different = np.flatnonzero(owners != owners[same[0]]) if len(same) else same
    if len(different):
        others[same] = np.resize(different, len(same))
    return others
