"""Means, paired differences and what the measurements say of a manager, in a word."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Interval = tuple[float, float] | None
RESAMPLES = 10_000
CONTROL, RANK, GATE, ALIKE = 0.1, 2.0, 0.05, 0.9
"""Of the reading rule: least controllability, participation ratio and gate of a manager that is used; and how alike the
goals of different examples are when one cannot be told from another."""


def summary(values: Sequence[float]) -> dict[str, Any]:
    """The values, n, mean, sd (n - 1 in the denominator), se, 95 % intervals of the mean; None where n says nothing."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    sd = float(array.std(ddof=1)) if n > 1 else None
    se = None if sd is None else sd / math.sqrt(n)
    mean = float(array.mean()) if n else None
    t = None if se is None or mean is None else (mean - t_quantile(n - 1) * se, mean + t_quantile(n - 1) * se)
    return {"values": array.tolist(), "n": n, "mean": mean, "sd": sd, "se": se, "t": t, "bootstrap": bootstrap(array)}


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """`summary` of value - baseline over the seeds that both have."""
    seeds = sorted(values.keys() & baseline.keys())
    return {"seeds": seeds, **summary([values[seed] - baseline[seed] for seed in seeds])}


def bootstrap(values: np.ndarray) -> Interval:
    """Percentile interval (95 %) of the mean of n values under resampling with replacement; None for n < 2."""
    n = len(values)
    if n < 2:
        return None
    draws = np.random.Generator(np.random.Philox(0)).integers(0, n, size=(RESAMPLES, n))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def t_quantile(freedom: int, level: float = 0.975) -> float:
    """Quantile of Student's t with a whole number of degrees of freedom, by bisection of the distribution function."""
    low, high = 0.0, 1.0
    while _t_between(high, freedom) < 2 * level - 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_between(middle, freedom) < 2 * level - 1 else (low, middle)
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


def reading(values: Mapping[str, Any]) -> tuple[str, str]:
    """(word, reason) of a cell: `control`, `content`, `presence` as `summary` gives them, `pr`, `gate`, `alike`.

    used: the worker follows a foreign goal (control > 0.1), the score falls beyond two standard errors when goals are
    exchanged, goals fill at least two directions, and the gate is open. constant bias: the score falls when goals are
    taken away but not when they are exchanged. obeyed but irrelevant: followed, and neither costs anything.
    """
    control, content, presence = (values[name]["mean"] or 0.0 for name in ("control", "content", "presence"))
    followed, matters, present = control > CONTROL, _beyond(values["content"]), _beyond(values["presence"])
    if followed and matters and (values["pr"] or 0) >= RANK and (values["gate"] or 0) > GATE:
        return "used", "followed, and exchanging goals costs score"
    if followed and matters:
        return "obeyed but collapsed", "exchanging goals costs score, but they fill one direction or the gate is shut"
    if present and not matters:
        return "constant bias", "taking goals away costs score, exchanging them does not"
    if followed:
        return "obeyed but irrelevant", f"followed, and exchanging goals changes the score by {-content:+.3f}"
    if matters:
        return "not followed", "exchanging goals costs score, but no worker moves along a foreign one"
    if (values["alike"] or 0) > ALIKE:
        return "one goal for all", f"goals of different examples are alike (cosine {values['alike']:.2f})"
    harm = f"; without goals the score changes by {-presence:+.3f}" if presence else ""
    return "not followed", f"no worker moves along a foreign goal{harm}"


def _beyond(values: Mapping[str, Any]) -> bool:
    """Whether a drop is larger than two standard errors."""
    return values["mean"] is not None and values["se"] is not None and values["mean"] > 2 * values["se"] > 0
