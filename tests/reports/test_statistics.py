"""Intervals against printed tables and against all resamples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from reports.statistics import bootstrap_interval, paired_difference, summarize, t_quantile


def test_only_seeds_that_both_have_are_paired() -> None:
    gap = paired_difference({0: 1.0, 1: 5.0, 7: 9.0}, {1: 2.0, 7: 4.0, 8: 0.0})
    assert (gap["seeds"], gap["values"], gap["mean"]) == ([1, 7], [3.0, 5.0], 4.0)
    assert paired_difference({0: 1.0}, {1: 1.0})["mean"] is None
    assert summarize([2.0])["t"] is summarize([2.0])["sd"] is summarize([2.0])["bootstrap"] is None


@pytest.mark.parametrize(
    ("freedom", "quantile"),  # a printed table of Student's t
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (14, 2.1448), (30, 2.0423)],
)
def test_the_quantiles_of_student(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_the_bootstrap_is_that_of_all_resamples() -> None:
    values = np.array([0.0, 1.0, 5.0])
    means = sorted(sum(draw) / 3 for draw in itertools.product(values, repeat=3))  # 27, each as likely
    low, high = bootstrap_interval(values)
    assert low == means[0]  # all zeros has 1 chance in 27, more than 2.5 %
    assert high == means[-1]
    assert bootstrap_interval(np.array([1.0])) is None
