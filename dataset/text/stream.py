"""One split of a text data set: memory-mapped token ids, checked, and windows cut from them.

N tokens in the file, T tokens of a window, B windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from dataset.checks import WatchedFile
from dataset.text.meta import META, load_tokenizer, read_meta
from engine.io import Unreadable, UsageError, check_regular, reason_of

IGNORE = -100
"""Target that is not scored."""
# Files of up to this many tokens are searched for ids outside the vocabulary; of larger ones as many, in spread blocks.
CHECKED, BLOCK = 1 << 26, 1 << 20
# Tokens decoded at each of three places, and the factor by which their mean may differ from that of the whole text.
SAMPLE, SLACK = 10_000, 1.6
LLM_C = (20240520, 20240801)
"""First four bytes of the token files of llm.c and its descendants."""


class TokenStream:
    """The tokens of `<root>/<split>.bin`, memory-mapped.

    Raises: UsageError if the folder is not a text data set or the file is incomplete.
    """

    def __init__(self, root: str | Path, split: str, *, name: str | None = None) -> None:
        self.root, self.split = Path(root), split
        self.name = name or self.root.name
        """Name of the data set in metrics."""
        self.meta = read_meta(root)
        self.path = self.root / f"{split}.bin"
        try:
            check_regular(self.path)
        except FileNotFoundError:
            have = ", ".join(sorted(p.name for p in self.root.glob("*.bin"))) or "no token files"
            raise UsageError(f"{self.path} does not exist: {self.root} holds {have}") from None
        except (OSError, Unreadable) as error:
            raise UsageError(f"{self.path} {reason_of(error)}: build the data set again") from None
        size, item = self.path.stat().st_size, self.meta.dtype.itemsize
        if size % item or size == 0:
            what = "is empty" if size == 0 else f"has {size} bytes, not a multiple of {item} ({self.meta.dtype.name})"
            raise UsageError(f"{self.path} {what}: build the data set again")
        self._file = WatchedFile(self.path)
        self._tokens: np.ndarray = np.memmap(self.path, dtype=self.meta.dtype, mode="r")
        declared = (self.meta.tokens or {}).get(split)
        if declared != len(self._tokens):
            self._check_width()
        if declared is not None and declared != len(self._tokens):
            raise UsageError(
                f"{self.path} has {len(self)} tokens, {META} says {declared}: it was cut short or is of another data "
                "set, so build the data set again"
            )
        self._checked = self.meta.vocab_size > np.iinfo(self.meta.dtype).max  # then no id can be too large
        self._views: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> np.ndarray:
        """The memory-mapped tokens [N]. Raises: RunFailure if the file was truncated since it was opened."""
        self._file.require_whole()
        return self._tokens

    def _check_width(self) -> None:
        """Raise UsageError for a header, and for ids wider than `meta` says, of which every other token would be 0."""
        head = np.fromfile(self.path, dtype=np.uint8, count=BLOCK)
        data, item_size = head.tobytes(), self.meta.dtype.itemsize
        header = "of numpy (.npy)" if data.startswith(b"\x93NUMPY") else None
        if len(data) >= 1024 and int.from_bytes(data[:4], "little") in LLM_C:
            header = "of llm.c (1,024 bytes)"
        if header is not None:
            raise UsageError(f"{self.path} has a header {header}: expected token ids from the first byte on")
        for width in (8, 4):
            if width <= item_size or self.path.stat().st_size % width or len(head) < 16 * width:
                continue
            rows = head[: len(head) // width * width].reshape(-1, width)
            if rows.any() and not rows[:, item_size:].any():
                raise UsageError(
                    f"{self.path} holds numbers of {8 * width} bits, expected {8 * item_size} ({self.meta.dtype.name}):"
                    f" numpy.fromfile(FILE, 'int{8 * width}').astype('{self.meta.dtype.name}').tofile(FILE) converts it"
                )

    @cached_property
    def bytes_per_token(self) -> float | None:
        """Average bytes of text per token, None if unknown: nats / (ln 2 x this) = bits per byte."""
        declared = (self.meta.bytes_per_token or {}).get(self.split)
        if declared is not None:
            self._check_bytes(declared)
        return declared

    def _check_bytes(self, declared: float) -> None:
        """Check the bytes per token of meta.json, on which bits per byte depend, against a decoded sample."""
        places = sorted({0, max(0, (len(self) - SAMPLE) // 2), max(0, len(self) - SAMPLE)})
        sample = [int(token) for low in places for token in self.tokens[low : low + SAMPLE]]
        try:
            text = load_tokenizer(self.root).decode([token for token in sample if token != self.meta.eot])
        except (UsageError, ImportError):  # without its tokenizer there is nothing to check against
            return
        measured = len(text.encode("utf-8", "replace")) / len(sample)
        if not declared / SLACK <= measured <= declared * SLACK:
            raise UsageError(
                f"{self.root / META}: bytes and tokens of {self.split} say {declared:.3g} bytes of text per token, the "
                f"tokens decode to {measured:.3g}: bits per byte would be wrong: build the data set again"
            )

    def require(self, block_size: int) -> None:
        """Raise UsageError unless a window of `block_size` tokens and its targets fit, and all ids are in range."""
        if len(self) < block_size + 1:
            raise UsageError(
                f"{self.path} has {len(self)} tokens, a window of block_size={block_size} needs {block_size + 1}: "
                f"lower block_size to {max(1, len(self) - 1)} or give more text"
            )
        self._check_ids()

    def _check_ids(self) -> None:
        if self._checked:
            return
        step = max(BLOCK, len(self) * BLOCK // CHECKED)
        for low in range(0, len(self), step):
            block = self.tokens[low : low + BLOCK]
            if int(block.max()) >= self.meta.vocab_size:
                at = int(np.argmax(block >= self.meta.vocab_size))
                raise UsageError(
                    f"{self.path} holds token {block[at]} at position {low + at}, but the vocabulary has "
                    f"{self.meta.vocab_size} ({self.root.name}'s meta): the files belong to different data sets"
                )
        self._checked = True

    def windows(self, offsets: np.ndarray, block_size: int) -> np.ndarray:
        """The T + 1 tokens from each offset (<= N - T - 1) on, [B, T + 1] in the file's type."""
        self._file.require_whole()
        if block_size not in self._views:
            # A plain ndarray: indexing a memmap creates a memmap object each time, which costs more than reading.
            flat = self._tokens.view(np.ndarray)
            self._views[block_size] = np.lib.stride_tricks.sliding_window_view(flat, block_size + 1)
        return self._views[block_size][offsets]


def aligned(streams: Sequence[TokenStream], align: str) -> int:
    """The common length of streams that annotate the same positions (`align` = error | truncate).

    Raises: UsageError with all lengths if they differ and `align` is not truncate.
    """
    lengths = [len(stream) for stream in streams]
    if align not in ("error", "truncate"):
        raise UsageError(f"multicontext_align={align!r}: choose error or truncate")
    if len(set(lengths)) > 1 and align == "error":
        listed = ", ".join(f"{stream.path} {len(stream)}" for stream in streams)
        raise UsageError(
            f"multicontext streams must have one token per position each, but their lengths differ: {listed}; "
            "multicontext_align=truncate cuts all to the shortest"
        )
    return min(lengths)
