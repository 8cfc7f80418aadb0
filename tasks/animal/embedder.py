"""Texts as vectors of length 1 whose product says how alike they are: for clusters of open text and for evaluation.

Shapes: n texts, d features.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.errors import UsageError
from engine.io import print_rank0

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""What embedder=auto takes where the Hub's cache has it."""
INSTALL = "pip install -e '.[animal]'"
SIZES = (3, 4, 5)
FEATURES = 512


class Embedder(Protocol):
    """Deterministic: the same text has the same vector, whatever it is embedded with."""

    name: str

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, d], rows of length 1; a text without any feature is zero."""


class HashEmbedder:
    """Hashed n-grams of 3 to 5 characters within words, as scikit-learn's HashingVectorizer(analyzer="char_wb") counts
    them: no download, nothing to fit, and texts are alike where they share words or parts of words.

    Args:
        features: d.
    """

    def __init__(self, features: int = FEATURES) -> None:
        self.features, self.name = features, "hash"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), self.features), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for gram, count in _ngrams(text).items():
                code = zlib.crc32(gram.encode())
                row[(code >> 1) % self.features] += count if code & 1 else -count  # the sign lets collisions cancel
        return _unit(rows)


def _ngrams(text: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for word in re.findall(r"\S+", text.lower()):
        padded = f" {word} "
        for size in SIZES:
            counts.update(padded[start : start + size] for start in range(max(1, len(padded) - size + 1)))
            if len(padded) <= size:  # the whole word: longer n-grams are the same
                break
    return counts


class SentenceEmbedder:
    """A model of the sentence-transformers library, from a folder or the Hub's cache.

    Raises: UsageError without the library, and for a folder that is no such model.
    """

    def __init__(self, place: str, device: str = "cpu") -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise UsageError(f"embedder={place} needs sentence-transformers: {INSTALL}; or embedder=hash") from None
        try:
            self._model: Any = SentenceTransformer(place, device=device, local_files_only=True)
        except Exception as error:  # whatever its files lack
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"embedder={place} is no sentence transformer: {first}; or embedder=hash") from None
        self._model.eval()
        self.name = place

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return _unit(np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1))


def make_embedder(name: str = "auto", device: str = "cpu") -> Embedder:
    """`hash`; the folder of a sentence transformer, or its name in the Hub's cache; or auto: all-MiniLM-L6-v2 where
    that is at hand, else `hash`, with a line that names the choice.

    Raises: UsageError for a model that cannot be loaded.
    """
    if name == "hash":
        return HashEmbedder()
    if name != "auto":
        return SentenceEmbedder(str(Path(name).expanduser()), device)
    if (reason := _missing(MINILM)) is None:
        print_rank0(f"embedder    {MINILM}")
        return SentenceEmbedder(MINILM, device)
    print_rank0(f"embedder    hashed character n-grams ({reason}; embedder=FOLDER takes a sentence transformer)")
    return HashEmbedder()


def _missing(name: str) -> str | None:
    """Why the sentence transformer `name` cannot be loaded here without a network; None where it can."""
    from importlib.util import find_spec

    if find_spec("sentence_transformers") is None:
        return f"sentence-transformers is not installed: {INSTALL}"
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(name, file) for file in ("modules.json", "config.json"))
    return None if all(isinstance(path, str) for path in found) else f"{name} is not in the Hub cache"


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = np.ascontiguousarray(rows / np.maximum(lengths, np.float32(1e-12)), dtype=np.float32)
    return scaled
