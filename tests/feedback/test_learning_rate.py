"""The learning rate of the feedback scripts: warm-up from above 0 to the peak, then cosine decay to min_lr."""

from __future__ import annotations

import pytest

from engine.loop.schedule import Decay
from tasks.feedback.build import learning_rate_factor


@pytest.mark.parametrize(
    ("step", "share"), [(1, 0.1), (5, 0.5), (10, 1.0), (11, 1.0), (56, 0.55), (101, 0.1), (500, 0.1)]
)
def test_warm_up_of_10_of_100_steps(step: int, share: float) -> None:
    settings = {"warmup": 10, "horizon": 100, "floor": 0.1}
    assert learning_rate_factor(step, decay=Decay(name="cosine"), **settings) == pytest.approx(share)


def test_no_warm_up() -> None:
    settings = {"warmup": 0, "horizon": 100, "floor": 0.1}
    assert learning_rate_factor(1, decay=Decay(name="none"), **settings) == 1.0
