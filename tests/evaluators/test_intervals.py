from __future__ import annotations

import math

import pytest

from evaluators.intervals import wilson

Z95 = 1.959963984540054


@pytest.mark.parametrize(("successes", "trials"), [(1, 10), (7, 10), (50, 100), (999, 1000), (3, 7), (321, 422786)])
def test_ends_solve_the_score_equation(successes: int, trials: int) -> None:
    share = successes / trials
    low, high = wilson(successes, trials)
    assert 0 <= low < share < high <= 1
    for end in (low, high):
        score = (share - end) / math.sqrt(end * (1 - end) / trials)
        assert abs(score) == pytest.approx(Z95, rel=1e-9)


def test_known_values() -> None:
    # 0 of n and n of n have the closed forms 0 .. z2 / (n + z2) and n / (n + z2) .. 1.
    assert wilson(0, 10) == (0.0, pytest.approx(Z95**2 / (10 + Z95**2), rel=1e-12))
    assert wilson(10, 10) == (pytest.approx(10 / (10 + Z95**2), rel=1e-12), 1.0)
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81 of 263 and 15 of 148.
    assert wilson(81, 263) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert wilson(15, 148) == (pytest.approx(0.0624, abs=5e-5), pytest.approx(0.1605, abs=5e-5))


def test_more_confidence_and_fewer_trials_are_wider() -> None:
    def width(*arguments: float) -> float:
        low, high = wilson(*arguments)
        return high - low

    assert width(5, 10, 0.99) > width(5, 10, 0.95) > width(50, 100, 0.95)


def test_nothing_tried_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("arguments", [(-1, 5), (6, 5), (1, 2, 0.0), (1, 2, 1.0)])
def test_nonsense_is_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson(*arguments)
