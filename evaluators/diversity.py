"""How diverse a set of texts is: pure functions of counts, of unit vectors and of texts.

Vendi, distinct-n and the number of different texts also grow when texts turn into nonsense. They are only worth
something beside a figure of quality (tasks/animal/evaluation.py has those), and between sets of equal size.

Shapes: n texts, d features, k classes. Vectors have length 1, or 0 for a text without features; entropies in nats.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
RESAMPLES = 2_000
PATIENCE = 0.8
"""p of `utility`: how likely a reader is to read one more sample (NoveltyBench, arXiv 2504.05228)."""


# --- counts -----------------------------------------------------------------------------------------------------------


def entropy(counts: Sequence[float] | Floats) -> float:
    """Entropy of the histogram `counts`, in nats; 0 for an empty one."""
    shares = np.asarray(counts, dtype=np.float64)
    shares = shares[shares > 0] / max(shares.sum(), 1e-300)
    return float(max(0.0, -(shares * np.log(shares)).sum()))


def kl_to_uniform(counts: Sequence[float] | Floats) -> float | None:
    """KL divergence of a histogram from the uniform one over all its k classes: log k - entropy. None for no counts."""
    counts = np.asarray(counts, dtype=np.float64)
    return max(0.0, math.log(len(counts)) - entropy(counts)) if counts.sum() else None


def kl_interval(counts: Sequence[int]) -> tuple[float, float] | None:
    """95 % percentile interval of `kl_to_uniform` under multinomial resampling of the counts. It lies above the value
    where that is near 0: a resampled histogram is never quite flat.
    """
    total = int(sum(counts))
    if not total:
        return None
    shares = np.asarray(counts, dtype=np.float64) / total
    drawn = np.random.Generator(np.random.Philox(0)).multinomial(total, shares, size=RESAMPLES) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        divergences = np.where(drawn > 0, drawn * np.log(drawn * len(counts)), 0.0).sum(axis=1)
    low, high = np.quantile(divergences, (0.025, 0.975))
    return max(0.0, float(low)), max(0.0, float(high))


# --- vectors ----------------------------------------------------------------------------------------------------------


def vendi(vectors: Floats) -> float:
    """Vendi score of vectors [n, d], the effective number of different texts: exp of the entropy of the eigenvalues of
    K / n, where K holds the cosines (arXiv 2210.02410). n equal texts -> 1, n orthogonal ones -> n, none -> 0.
    """
    n = len(vectors)
    if not n:
        return 0.0
    unit = np.asarray(vectors, dtype=np.float64)
    small = unit @ unit.T if n <= unit.shape[1] else unit.T @ unit  # the same eigenvalues but for zeros
    values = np.linalg.eigvalsh(small / n)
    empty = 1 - float(np.square(unit).sum()) / n  # texts without features are alike, and unlike all others
    return math.exp(entropy(np.clip([*values.tolist(), empty], 0.0, None)))


def mean_distance(vectors: Floats) -> float | None:
    """Mean cosine distance (1 - cosine) of two different texts; None for fewer than two."""
    n = len(vectors)
    if n < 2:
        return None
    unit = np.asarray(vectors, dtype=np.float64)
    return float(1 - (np.square(unit.sum(axis=0)).sum() - np.square(unit).sum()) / (n * (n - 1)))


def classes(vectors: Floats, kinds: Sequence[Any], threshold: float = 0.85) -> list[int]:
    """Which class each text belongs to: that of the first text before it that is of the same kind and has a cosine of
    at least `threshold` with it, and that began a class itself; else a new one.
    """
    first: list[int] = []
    labels: list[int] = []
    for row, kind in enumerate(kinds):
        alike = (
            number
            for number, begun in enumerate(first)
            if kinds[begun] == kind and float(vectors[row] @ vectors[begun]) >= threshold
        )
        label = next(alike, len(first))
        if label == len(first):
            first.append(row)
        labels.append(label)
    return labels


def utility(labels: Sequence[int], utilities: Sequence[float], p: float = PATIENCE) -> float:
    """What k samples in their order are worth to a reader who tires, and whom a sample of a known class gives nothing:

        utility_k = (1 - p) / (1 - p^k) * sum over i of p^(i-1) * [class i is new] * u_i

    `labels` and `utilities` u_i have k entries. 1 where all are new and worth 1; (1 - p) / (1 - p^k) where all are of
    one class. A class is used up only by a sample that is worth something.
    """
    seen: set[int] = set()
    total = 0.0
    for place, (label, worth) in enumerate(zip(labels, utilities, strict=True)):
        if worth and label not in seen:
            seen.add(label)
            total += p**place * worth
    return total * (1 - p) / (1 - p ** len(labels)) if labels else 0.0


# --- texts ------------------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Lower-case words and signs, as n-grams are made of them."""
    spaced = "".join(char if char.isalnum() or char == "'" else f" {char} " for char in text.lower())
    return spaced.split()


def ngrams(tokens: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n: different n-grams of words over all n-grams (arXiv 1510.03055); None where there are none."""
    counts = Counter(gram for text in texts for gram in ngrams(words(text), n))
    return len(counts) / counts.total() if counts else None


def self_bleu(texts: Sequence[str], order: int = 4, limit: int = 200) -> float | None:
    """Mean BLEU of each text with all others as references (arXiv 1802.01886), of the first `limit` texts: lower is
    more diverse, 1 where all are equal. Counts of n-grams of two words and more are smoothed by one (Lin and Och 2004).

    None for fewer than two texts.
    """
    tokens = [words(text) for text in texts[:limit]]
    if len(tokens) < 2:
        return None
    lengths = Counter(map(len, tokens))
    tables = [[Counter(ngrams(each, n)) for each in tokens] for n in range(1, order + 1)]
    best = [_two_largest(table) for table in tables]
    return sum(_bleu(row, tokens, lengths, tables, best) for row in range(len(tokens))) / len(tokens)


def _two_largest(table: Sequence[Counter[Any]]) -> dict[Any, tuple[int, int]]:
    """n-gram -> the largest and the next of its counts in the texts, so that a text can be left out."""
    largest: dict[Any, tuple[int, int]] = {}
    for counts in table:
        for gram, count in counts.items():
            first, second = largest.get(gram, (0, 0))
            largest[gram] = (count, first) if count > first else (first, max(second, count))
    return largest


def _bleu(row: int, tokens: Any, lengths: Counter[int], tables: Any, best: Any) -> float:
    own = len(tokens[row])
    logs = []
    for order, (table, largest) in enumerate(zip(tables, best, strict=True)):
        counts = table[row]
        if not counts:
            continue
        matched = 0
        for gram, count in counts.items():
            first, second = largest[gram]
            matched += min(count, second if count == first else first)
        smoothing = 1 if order else 0
        precision = (matched + smoothing) / (counts.total() + smoothing)
        if not precision:
            return 0.0
        logs.append(math.log(precision))
    if not logs:
        return 0.0
    others = (length for length, count in lengths.items() if count > (length == own))
    reference = min(others, key=lambda length: (abs(length - own), length))
    return math.exp(min(0.0, 1 - reference / own) + sum(logs) / len(logs))


def compression_ratio(texts: Sequence[str]) -> float | None:
    """Bytes of all texts over their bytes after zlib: higher is more repetitive (arXiv 2403.00553). None for none."""
    raw = "\n".join(texts).encode()
    return len(raw) / len(zlib.compress(raw, 9)) if raw else None
