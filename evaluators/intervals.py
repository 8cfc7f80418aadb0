"""Confidence intervals of proportions."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion with `successes` in `trials` independent trials.

    The two proportions p for which |s - p| / sqrt(p (1 - p) / n) equals the normal quantile z, where s is the measured
    proportion (E. B. Wilson, JASA 22, 1927). Unlike s +- z * sigma it stays within [0, 1] and is informative at s = 0
    and s = 1. With no trials it is (0, 1).

    Raises:
        ValueError: successes outside [0, trials], or confidence outside (0, 1).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes={successes}: expected 0 to trials={trials}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a share between 0 and 1, e.g. 0.95")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # At the ends the formula is exact, but for floating-point rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high
