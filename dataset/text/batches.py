"""Batches of windows, addressed by step: a function of (seed, step) alone, on any number of ranks and after a resume.

N tokens in a stream, T = block_size, B rows of the global batch, b rows requested, K aligned streams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataset.text.mixture import PLAN, Mixture
from dataset.text.stream import IGNORE, TokenStream, aligned
from engine.distributed import keyed_numpy
from engine.io import UsageError, did_you_mean

METHODS = ("random", "without_replacement", "sequential")
MODES = ("sweep", "random")
ROUNDS = 6
# Batches of a data set whose offsets are computed at once, for speed only.
AHEAD = 32


def shuffled(index: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Apply a random permutation of 0 … count - 1 to `index`, without an array of that size.

    A Feistel network on the next power of four, iterated until the value is below `count` (cycle walking); the keys
    choose the permutation. index int64 [n], keys uint64 [rounds].
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    value = index.astype(np.uint64)
    outside = np.arange(len(value))
    while outside.size:
        part = value[outside]
        left, right = part >> half, part & mask
        for key in keys:
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        value[outside] = (left << half) | right
        outside = outside[value[outside] >= count]
    return value.astype(np.int64)


def _choose(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{key}={value!r}: {did_you_mean(value, choices)}")


class _Windows:
    """One data set: a stream, or K aligned ones that are read at the same offsets."""

    def __init__(self, streams: Sequence[TokenStream], block_size: int, *, contexts: bool, align: str) -> None:
        for stream in streams:
            stream.require(block_size)
        self.streams, self.block_size, self.contexts = list(streams), block_size, contexts
        self.length = aligned(streams, align) if contexts else len(streams[0])
        self.starts = self.length - block_size
        """Number of possible window offsets."""
        self.blocks = (self.length - 1) // block_size
        """Number of non-overlapping windows."""

    def batch(self, offsets: np.ndarray) -> dict[str, np.ndarray]:
        """tokens and targets int64 [b, T], or [b, T, K] for aligned streams."""
        if not self.contexts:
            return _pair(self.streams[0].windows(offsets, self.block_size))
        return _pair(np.stack([s.windows(offsets, self.block_size).astype(np.int64) for s in self.streams], axis=-1))

    def padded(self, offsets: np.ndarray) -> dict[str, np.ndarray]:
        """As `batch`, for offsets up to the end of the data, which is padded with token 0 and target -100."""
        positions = offsets[:, None] + np.arange(self.block_size + 1)
        inside = np.minimum(positions, self.length - 1)
        if self.contexts:
            tokens = np.stack([s.tokens[inside].astype(np.int64) for s in self.streams], axis=-1)
        else:
            tokens = self.streams[0].tokens[inside]
        out = _pair(tokens)
        out["tokens"][positions[:, :-1] >= self.length] = 0
        out["targets"][positions[:, 1:] >= self.length] = IGNORE
        return out


def _pair(windows: np.ndarray) -> dict[str, np.ndarray]:
    return {"tokens": windows[:, :-1].astype(np.int64), "targets": windows[:, 1:].astype(np.int64)}


class TrainBatches:
    """Training batches of one data set, of several by a mixture, or of aligned streams (`contexts`).

    Methods: `random` draws windows at any offset with replacement. `without_replacement` cuts a data set into
    non-overlapping windows and takes each once per epoch, with a new order and a new start offset (below the remainder
    of N / T) in every epoch; `sequential` takes them in file order. Both count the rows drawn from the data set before.

    Raises: UsageError for streams that are too short for a window, of unequal length with `contexts` (unless
    align=truncate), or with token ids outside their vocabulary.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        *,
        seed: int,
        batch_size: int,
        block_size: int,
        method: str = "random",
        mixture: Mixture | None = None,
        contexts: bool = False,
        align: str = "error",
    ) -> None:
        _choose("sampling_method", method, METHODS)
        if batch_size < 1 or block_size < 1:
            raise UsageError(f"batch_size={batch_size} and block_size={block_size} must be >= 1")
        known = len(mixture.names) if mixture else 1
        if not contexts and known != len(streams):
            raise ValueError(f"{len(streams)} streams for {known} data sets")
        groups = [streams] if contexts else [[stream] for stream in streams]
        self.datasets = [_Windows(group, block_size, contexts=contexts, align=align) for group in groups]
        self.seed, self.batch_size, self.block_size = seed, batch_size, block_size
        self.method, self.mixture = method, mixture
        self._drawn: tuple[int, np.ndarray] | None = None
        self._parts: dict[int, tuple[int, np.ndarray]] = {}
        self._shift = np.zeros(len(self.datasets), dtype=np.int64)
        """[K] rows drawn so far minus those that the current settings would have drawn: see `resume_from`."""

    def dataset(self, step: int) -> int:
        """The data set of a step: an index into the mixture's names, 0 without a mixture."""
        return self.mixture.choice(step) if self.mixture else 0

    def rows(self, step: int, low: int, high: int) -> dict[str, np.ndarray]:
        """Rows [low, high) of the global batch: tokens and targets int64 [b, T], [b, T, K] for aligned streams."""
        return self.datasets[self.dataset(step)].batch(self.offsets(step)[low:high])

    def offsets(self, step: int) -> np.ndarray:
        """Window offsets of the global batch, int64 [B], for callers that keep the tokens on a device."""
        number = self.dataset(step)
        windows = self.datasets[number]
        if self.method == "random":
            return (self._uniform(step) * windows.starts).astype(np.int64)
        before = int(self.mixture.taken(step)[number]) if self.mixture else step
        return self._ordered(number, before // AHEAD)[before % AHEAD]

    def _ordered(self, number: int, part: int) -> np.ndarray:
        """Window offsets of one data set's batches part * AHEAD and following, int64 [AHEAD, B]."""
        known = self._parts.get(number)
        if known is None or known[0] != part:
            windows = self.datasets[number]
            rows = np.arange(AHEAD * self.batch_size) + part * AHEAD * self.batch_size + self._shift[number]
            rows = np.maximum(rows, 0)  # negative for batches before the resumed step
            epochs, index = np.divmod(rows, windows.blocks)
            if self.method == "sequential":
                offsets = index * self.block_size
            else:
                ends = np.flatnonzero(np.diff(epochs)) + 1
                pieces = zip(np.split(epochs, ends), np.split(index, ends), strict=True)
                offsets = np.concatenate([self._shuffled(number, int(epoch[0]), part) for epoch, part in pieces])
            known = self._parts[number] = (part, offsets.reshape(AHEAD, self.batch_size))
        return known[1]

    def _shuffled(self, number: int, epoch: int, index: np.ndarray) -> np.ndarray:
        """Offsets of the windows at positions `index` in the order of an epoch."""
        windows = self.datasets[number]
        generator = keyed_numpy(self.seed, f"text/epoch/{number}", epoch)
        keys = generator.integers(0, 1 << 63, ROUNDS, dtype=np.uint64)
        spare = windows.length - 1 - windows.blocks * self.block_size
        return shuffled(index, windows.blocks, keys) * self.block_size + int(generator.integers(0, spare + 1))

    def progress(self, step: int) -> list[tuple[int, float]]:
        """(tokens, epochs) that each data set has given before `step`."""
        tokens = [rows * self.block_size for _, rows in self.rows_drawn(step)]
        return [(count, count / (data.length - 1)) for count, data in zip(tokens, self.datasets, strict=True)]

    def rows_drawn(self, step: int) -> list[tuple[str, int]]:
        """(name, rows drawn before `step`) of each data set, for `resume_from`."""
        rows = (self._planned_rows(step) + self._shift).tolist()
        return [(data.streams[0].name, count) for data, count in zip(self.datasets, rows, strict=True)]

    def resume_from(self, step: int, drawn: Sequence[tuple[str, int]]) -> None:
        """Continue at `step` from the rows `drawn` so far, if with another batch size or mixture.

        A data set with an unknown name is one whose folder was moved: a resume accepts no other.
        """
        known, names = dict(drawn), [data.streams[0].name for data in self.datasets]
        renamed = iter([rows for name, rows in drawn if name not in names])
        before = np.array([known[name] if name in known else next(renamed, 0) for name in names], dtype=np.int64)
        self._shift = before - self._planned_rows(step)
        self._parts.clear()

    def _planned_rows(self, step: int) -> np.ndarray:
        """[K] rows before `step` if all steps had these settings."""
        return (self.mixture.taken(step) if self.mixture else np.array([step])) * self.batch_size

    def _uniform(self, step: int) -> np.ndarray:
        """[B] numbers in [0, 1), drawn for PLAN steps at once: creating a generator costs more than a batch."""
        block = step // PLAN
        if self._drawn is None or self._drawn[0] != block:
            draws = keyed_numpy(self.seed, "text/offsets", block).random((PLAN, self.batch_size))
            self._drawn = (block, draws)
        return self._drawn[1][step % PLAN]


class EvalBatches:
    """Evaluation batches of one data set, or of K aligned streams.

    `sweep`: non-overlapping windows in file order, the last one padded with target -100, so that every token but the
    first is scored exactly once; `max_batches` limits them to evenly spaced ones, always the same. `random`:
    `max_batches` batches of windows at random offsets, always the same, as in nanoGPT's estimate_loss.

    Raises: UsageError as TrainBatches.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        *,
        seed: int,
        batch_size: int,
        block_size: int,
        mode: str = "sweep",
        max_batches: int | None = None,
        contexts: bool = False,
        align: str = "error",
    ) -> None:
        _choose("eval_mode", mode, MODES)
        if mode == "random" and max_batches is None:
            raise UsageError("eval_mode=random needs eval_iters: there is no last random batch")
        if max_batches is not None and max_batches < 1:
            raise UsageError(f"eval_iters={max_batches} must be >= 1")
        if not contexts and len(streams) != 1:
            raise ValueError("one data set at a time")
        self.data = _Windows(streams, block_size, contexts=contexts, align=align)
        self.seed, self.batch_size, self.block_size, self.mode = seed, batch_size, block_size, mode
        self._purpose = f"text/eval/{streams[0].split}/0"
        whole = -(-(self.data.length - 1) // block_size)
        self.windows = whole if max_batches is None else min(whole, max_batches * batch_size)
        """Windows of a sweep."""
        self._whole = whole
        self._batches = -(-self.windows // batch_size) if mode == "sweep" else int(max_batches or 0)

    def __len__(self) -> int:
        return self._batches

    @property
    def covers(self) -> str:
        """Description of what is evaluated; figures are compared only if theirs are equal."""
        if self.mode == "random":
            return f"{len(self) * self.batch_size:,} random windows of {self.block_size} tokens (seed {self.seed})"
        return f"{self.windows:,} of {self._whole:,} windows of {self.block_size} tokens"

    def rows(self, index: int, low: int, high: int) -> dict[str, np.ndarray]:
        """Rows [low, high) of batch `index`, as in TrainBatches.rows; rows after the last window are not scored."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are batches 0 to {len(self) - 1}, not {index}")
        if self.mode == "random":
            draws = keyed_numpy(self.seed, self._purpose, index).random(self.batch_size)
            return self.data.batch((draws * self.data.starts).astype(np.int64)[low:high])
        numbers = index * self.batch_size + np.arange(low, high)
        offsets = numbers * self._whole // self.windows * self.block_size
        return self.data.padded(np.where(numbers < self.windows, offsets, self.data.length))
