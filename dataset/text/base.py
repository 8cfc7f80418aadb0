"""The tokenizer interface: text to token ids and back, and the type of token ids on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np

EOT_TEXT = "<|endoftext|>"


def width(vocab_size: int) -> np.dtype:
    """The type of a token file: uint16 (as in nanoGPT) for a vocabulary of up to 65,536 tokens, uint32 beyond."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class Tokenizer(ABC):
    """Base of all tokenizers. If `lossless`, `decode(encode(text)) == text`."""

    kind: str
    """The name in config, cards and meta.json."""
    vocab_size: int
    eot: int | None
    """End-of-document token, to which no text is encoded."""
    sized: ClassVar[bool] = False
    """Whether `fit` takes a vocabulary size."""
    whole: ClassVar[bool] = False
    """Whether `fit` must see all text of both splits (an unseen character could not be encoded)."""
    lossless: ClassVar[bool] = True
    """Whether decoding restores the text; otherwise bits per byte are meaningless."""

    @classmethod
    @abstractmethod
    def fit(cls, kind: str, texts: Iterable[str], *, vocab_size: int | None, eot: bool) -> Self:
        """Fit a tokenizer to texts. `eot`: the corpus consists of documents. Raises: UsageError."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """A JSON value from which `from_state` restores the tokenizer; `type` is its name."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Restore the tokenizer from its `state`."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Token ids [N], in the type of the token files. Raises: UsageError for text that has no token."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids; incomplete UTF-8 (a cut character) becomes U+FFFD.

        Raises: ValueError for an id outside the vocabulary.
        """
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
        outside = array[(array < 0) | (array >= self.vocab_size)]
        if outside.size:
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {self.vocab_size} ({self.kind})")
        return self._decode(array)

    @abstractmethod
    def _decode(self, ids: np.ndarray) -> str:
        """The text of ids that were checked to be in the vocabulary."""
