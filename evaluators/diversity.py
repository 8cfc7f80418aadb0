"""Diversity metrics of a set of texts: pure functions of counts, unit vectors and texts.

Vendi, distinct-n and the number of different texts also grow when texts turn into nonsense. Read them together with a
quality metric (see tasks/animal/evaluation.py), and compare only sets of equal size.

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
    """KL divergence from a histogram to the uniform one over its k classes: log k - entropy. None without counts."""
    counts = np.asarray(counts, dtype=np.float64)
    return max(0.0, math.log(len(counts)) - entropy(counts)) if counts.sum() else None


def kl_interval(counts: Sequence[int]) -> tuple[float, float] | None:
    """95 % bootstrap percentile interval of `kl_to_uniform`, by multinomial resampling of the counts.

    It lies above the value if that is near 0, since a resampled histogram is never exactly uniform. None without
    counts.
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
    """Vendi score of vectors [n, d], the effective number of different texts (arXiv 2210.02410).

    exp of the entropy of the eigenvalues of K / n, K the cosine matrix. n equal texts -> 1, n orthogonal -> n, none ->
    0.
    """
    n = len(vectors)
    if not n:
        return 0.0
    unit = np.asarray(vectors, dtype=np.float64)
    small = unit @ unit.T if n <= unit.shape[1] else unit.T @ unit  # same non-zero eigenvalues
    values = np.linalg.eigvalsh(small / n)
    empty = 1 - float(np.square(unit).sum()) / n  # texts without features count as equal to each other only
    return math.exp(entropy(np.clip([*values.tolist(), empty], 0.0, None)))


def mean_distance(vectors: Floats) -> float | None:
    """Mean cosine distance (1 - cosine) over pairs of different texts; None for fewer than two texts."""
    n = len(vectors)
    if n < 2:
        return None
    unit = np.asarray(vectors, dtype=np.float64)
    return float(1 - (np.square(unit.sum(axis=0)).sum() - np.square(unit).sum()) / (n * (n - 1)))


def classes(vectors: Floats, kinds: Sequence[Any], threshold: float = 0.85) -> list[int]:
    """Greedy clustering: each text joins the first class of the same kind whose first member has a cosine of at least
    `threshold` with it, else starts a new class. Returns the class of each text.
    """
    first: list[int] = []
    labels: list[int] = []
    for row, kind in enumerate(kinds):
        alike = (
            number
            for number, member in enumerate(first)
            if kinds[member] == kind and float(vectors[row] @ vectors[member]) >= threshold
        )
        label = next(alike, len(first))
        if label == len(first):
            first.append(row)
        labels.append(label)
    return labels


def utility(labels: Sequence[int], utilities: Sequence[float], p: float = PATIENCE) -> float:
    """Cumulative utility of k samples to a reader with limited patience, who gains nothing from a known class:

        utility_k = (1 - p) / (1 - p^k) * sum over i of p^(i-1) * [class i is new] * u_i

    `labels` and `utilities` u_i have k entries. 1 if all classes are new and all u_i = 1; (1 - p) / (1 - p^k) if all
    samples are of one class. Samples of utility 0 do not make their class known.
    """
    seen: set[int] = set()
    total = 0.0
    for index, (label, value) in enumerate(zip(labels, utilities, strict=True)):
        if value and label not in seen:
            seen.add(label)
            total += p**index * value
    return total * (1 - p) / (1 - p ** len(labels)) if labels else 0.0


# --- texts ------------------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Split into lower-case words and punctuation marks, for n-grams."""
    spaced = "".join(char if char.isalnum() or char == "'" else f" {char} " for char in text.lower())
    return spaced.split()


def ngrams(tokens: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n: number of different n-grams over all n-grams (arXiv 1510.03055); None if there are none."""
    counts = Counter(gram for text in texts for gram in ngrams(words(text), n))
    return len(counts) / counts.total() if counts else None


def self_bleu(texts: Sequence[str], order: int = 4, limit: int = 200) -> float | None:
    """Self-BLEU: mean BLEU of each of the first `limit` texts against all others (arXiv 1802.01886). Lower is more
    diverse; 1 if all are equal. Counts of n-grams of two and more words are smoothed by one (Lin and Och 2004).

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
    """The two largest counts of each n-gram over the texts, so that any one text can be left out."""
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
    """Size of all texts over their size after zlib: higher is more repetitive (arXiv 2403.00553). None without text."""
    raw = "\n".join(texts).encode()
    return len(raw) / len(zlib.compress(raw, 9)) if raw else None
