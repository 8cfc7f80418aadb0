"""Means over seeds, paired differences, and their 95 % intervals: Student's t and the percentile bootstrap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

Interval = tuple[float, float]
RESAMPLES = 10_000


class Summary(TypedDict):
    """A sample and its statistics; None for those that n values do not define."""

    values: list[float]
    n: int
    mean: float | None
    sd: float | None
    """Standard deviation with n - 1 in the denominator."""
    se: float | None
    t: Interval | None
    """95 % interval of the mean by Student's t."""
    bootstrap: Interval | None
    """95 % percentile interval of the mean."""


class PairedSummary(Summary):
    """Differences between two samples over the seeds that both have."""

    seeds: list[int]


def summarize(values: Sequence[float]) -> Summary:
    """The summary of finite values."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    mean = float(array.mean()) if n else None
    sd = float(array.std(ddof=1)) if n > 1 else None
    se = None if sd is None else sd / math.sqrt(n)
    t = None if se is None or mean is None else (mean - t_quantile(n - 1) * se, mean + t_quantile(n - 1) * se)
    return {
        "values": array.tolist(),
        "n": n,
        "mean": mean,
        "sd": sd,
        "se": se,
        "t": t,
        "bootstrap": bootstrap_interval(array),
    }


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> PairedSummary:
    """The summary of value - baseline over the seeds that both have (seed -> value)."""
    seeds = sorted(values.keys() & baseline.keys())
    return {"seeds": seeds, **summarize([values[seed] - baseline[seed] for seed in seeds])}


def bootstrap_interval(values: np.ndarray) -> Interval | None:
    """Percentile interval (95 %) of the mean of values [n] under resampling with replacement; None for n < 2."""
    n = len(values)
    if n < 2:
        return None
    draws = np.random.Generator(np.random.Philox(0)).integers(0, n, size=(RESAMPLES, n))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with integer degrees of freedom, by bisection: P(|T| < t) = 0.95."""
    low, high = 0.0, 1.0
    while _t_between(high, freedom) < 0.95:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_between(middle, freedom) < 0.95 else (low, middle)
    return high


def _t_between(t: float, freedom: int) -> float:
    """P(|T| < t): the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):  # freedom // 2 terms, cos^1, cos^3 ... or cos^0, cos^2 ...
        total += term
        term *= cosine * cosine * k / (k + 1)
    return (angle + sine * total) * 2 / math.pi if odd else sine * total
