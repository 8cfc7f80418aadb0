"""Text embeddings of unit length, whose dot product is the cosine similarity: for clustering and evaluation.

Shapes: n texts, d features, v terms.
"""

from __future__ import annotations

import os
import re
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from engine.errors import UsageError
from engine.io import print_rank0, user_path
from models.animal.adapter import INSTALL

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""The model of embedder=auto, if it is in the Hub cache."""
SIZES = (3, 4, 5)
"""Lengths of n-grams, in characters."""
FEATURES = 512
"""Width of hashed embeddings."""
TERMS = 2048
"""Vocabulary of n-grams: the most frequent ones."""
COMPONENTS = 100
"""Components of the truncated SVD, given enough texts: the usual number in latent semantic analysis."""


class Embedder(ABC):
    """Deterministic: once fitted, a text's embedding does not depend on the other texts."""

    name: str

    def fit(self, texts: Sequence[str]) -> None:  # noqa: B027  most have nothing to fit
        """Fit to samples of the base, once, before the first call of `encode`."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: float32 [n, d], rows of unit length; zero for a text without known features."""

    def state_dict(self) -> dict[str, Any]:
        """The fitted state; empty before `fit`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  and so nothing to load
        """Load `state_dict`."""


class TfidfEmbedder(Embedder):
    """Latent semantic analysis (Deerwester et al. 1990): n-grams of 3 to 5 characters within words, counted as
    1 + log(count), weighted by their inverse document frequency, and projected onto the leading right singular vectors
    of the texts that it was fitted on. Unknown n-grams are ignored.
    """

    name = "tfidf"

    def __init__(self) -> None:
        self.terms: list[str] = []
        self.weights = np.zeros(0)
        """float64 [v]"""
        self.components = np.zeros((1, 0), dtype=np.float32)
        """[d, v]; one row without terms before `fit`: all embeddings are zero."""

    def fit(self, texts: Sequence[str]) -> None:
        """Fit terms, weights and components. Raises: UsageError without scikit-learn."""
        if not any(map(str.strip, texts)):
            return
        vectorizer = self._vectorizer(max_features=TERMS)
        table = vectorizer.fit_transform(texts)
        from sklearn.decomposition import TruncatedSVD

        count = max(1, min(COMPONENTS, *(size - 1 for size in table.shape)))
        self.terms, self.weights = vectorizer.get_feature_names_out().tolist(), vectorizer.idf_
        self.components = TruncatedSVD(count, random_state=0).fit(table).components_.astype(np.float32)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        if not self.terms or not texts:
            return np.zeros((len(texts), len(self.components)), dtype=np.float32)
        vectorizer = self._vectorizer(vocabulary=self.terms)
        vectorizer.idf_ = self.weights
        return _unit((vectorizer.transform(texts) @ self.components.T).astype(np.float32))

    @staticmethod
    def _vectorizer(**how: Any) -> Any:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError:
            raise UsageError(f"embedder=tfidf needs scikit-learn: {INSTALL}; or embedder=hash") from None
        return TfidfVectorizer(analyzer="char_wb", ngram_range=(SIZES[0], SIZES[-1]), sublinear_tf=True, **how)

    def state_dict(self) -> dict[str, Any]:
        if not self.terms:
            return {}
        weights, components = torch.from_numpy(self.weights.copy()), torch.from_numpy(self.components)
        return {"terms": list(self.terms), "weights": weights, "components": components}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "terms" not in state:
            return
        self.terms = list(state["terms"])
        self.weights = state["weights"].cpu().numpy()
        self.components = state["components"].cpu().numpy()


class HashEmbedder(Embedder):
    """Hashed n-grams of 3 to 5 characters within words, like scikit-learn's HashingVectorizer(analyzer="char_wb"):
    nothing to fit, and no n-gram is unknown.

    Args:
        features: width d of the embeddings.
    """

    name = "hash"

    def __init__(self, features: int = FEATURES) -> None:
        self.features = features

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
            if len(padded) <= size:  # the whole word: longer n-grams would be the same
                break
    return counts


class SentenceEmbedder(Embedder):
    """A model of the sentence-transformers library, from a folder or the Hub cache.

    Raises: UsageError without the library, and for a folder that is not such a model.
    """

    def __init__(self, place: str) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads break in forked processes
        others = "or embedder=tfidf, which needs no model"
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise UsageError(f"embedder={place} needs sentence-transformers: {INSTALL}; {others}") from None
        try:
            self._model: Any = SentenceTransformer(place, device="cpu", local_files_only=True)
        except Exception as error:  # the class depends on what is wrong with its files
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"embedder={place} is not a sentence transformer: {first}; {others}") from None
        self._model.eval()
        self.name = place

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return _unit(np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1))


SMALL: dict[str, type[Embedder]] = {"tfidf": TfidfEmbedder, "hash": HashEmbedder}


def make_embedder(name: str) -> Embedder:
    """Create the embedder `tfidf` or `hash`, a sentence transformer by folder or name in the Hub cache, or `auto`:
    all-MiniLM-L6-v2 if available, else `tfidf`; prints its choice.

    Raises: UsageError for a model that cannot be loaded.
    """
    if name in SMALL:
        return SMALL[name]()
    if name != "auto":
        return SentenceEmbedder(str(user_path(name)))
    if (reason := _missing(MINILM)) is None:
        print_rank0(f"embedder    {MINILM}")
        return SentenceEmbedder(MINILM)
    print_rank0(f"embedder    tfidf ({reason}; embedder=FOLDER takes a sentence transformer)")
    return TfidfEmbedder()


def _missing(name: str) -> str | None:
    """Why the sentence transformer `name` cannot be loaded offline; None if it can."""
    from importlib.util import find_spec

    if find_spec("sentence_transformers") is None:
        return f"sentence-transformers is not installed: {INSTALL}"
    from huggingface_hub import try_to_load_from_cache

    paths = (try_to_load_from_cache(name, file) for file in ("modules.json", "config.json"))
    return None if all(isinstance(path, str) for path in paths) else f"{name} is not in the Hub cache"


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = np.ascontiguousarray(rows / np.maximum(lengths, np.float32(1e-12)), dtype=np.float32)
    return scaled
