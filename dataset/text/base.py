"""What every tokenizer is: text to numbers and back, and the numbers' width on disk. V = size of a vocabulary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np

EOT_TEXT = "<|endoftext|>"


def width(vocab_size: int) -> np.dtype:
    """The type of a token file: uint16 (nanoGPT's) for up to 65,536 different tokens, uint32 beyond."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class Tokenizer(ABC):
    """Base of all tokenizers. `decode(encode(text)) == text` where they are `lossless`."""

    kind: str
    """The name in config, cards and meta.json."""
    vocab_size: int
    eot: int | None
    """Token that ends a document; no text encodes to it."""
    sized: ClassVar[bool] = False
    """Whether `fit` takes a vocabulary size."""
    whole: ClassVar[bool] = False
    """Whether `fit` must see all text of both splits (a character that is missing could not be encoded)."""
    lossless: ClassVar[bool] = True
    """Whether the text comes back; without that bits per byte mean nothing."""

    @classmethod
    @abstractmethod
    def fit(cls, kind: str, texts: Iterable[str], *, vocab_size: int | None, eot: bool) -> Self:
        """A tokenizer for these texts. `eot`: the corpus consists of documents. Raises: UsageError."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything `from_state` needs, as JSON; `type` names the tokenizer."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The tokenizer that gave `state`."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Token ids [N], in the type of the token files. Raises: UsageError on text it has no token for."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids; bytes that are not complete UTF-8 (a cut character) become U+FFFD.

        Raises: ValueError on an id outside the vocabulary.
        """
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
        outside = array[(array < 0) | (array >= self.vocab_size)]
        if outside.size:
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {self.vocab_size} ({self.kind})")
        return self._decode(array)

    @abstractmethod
    def _decode(self, ids: np.ndarray) -> str:
        """The text of ids that are all in the vocabulary."""
