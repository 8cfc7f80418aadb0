"""The schedule against the golden table and the written-out checks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.loop.schedule import Decay, Plateau, lr_factor, warmup_cosine


def test_golden_table(golden):
    for base, warmup, total, ratio, step, lr in np.load(golden("schedule_ema/lr_schedule.npz"))["table"]:
        ours = warmup_cosine(int(step), base=base, warmup=int(warmup), total=int(total), min_ratio=ratio)
        assert ours == pytest.approx(lr, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(
    ("step", "lr"), [(1, 5e-8), (1000, 5e-5), (2000, 1e-4), (6000, 5.5e-5), (10000, 1e-5), (10**6, 1e-5)]
)
def test_checks(step, lr):
    assert warmup_cosine(step, base=1e-4, warmup=2000, total=10000, min_ratio=0.1) == pytest.approx(lr)


def test_no_warmup_and_constant():
    assert warmup_cosine(1, base=1.0, warmup=0, total=10, min_ratio=1.0) == 1.0
    assert warmup_cosine(5, base=1.0, warmup=20, total=10, min_ratio=0.0) == 0.25


# --- warm-up times decay ----------------------------------------------------------------------------------------------

W, H, FLOOR = 10, 110, 0.1


def curve(name: str, step: int, options: dict | None = None, **change: float) -> float:
    settings = {"warmup": W, "horizon": H, "floor": FLOOR, **change}
    return lr_factor(step, Decay(name=name, options=options or {}), **settings)


@pytest.mark.parametrize("name", ["none", "cosine", "linear", "exponential", "step", "wsd", "inverse_sqrt"])
def test_warmup_is_the_same_for_all_and_never_zero(name: str) -> None:
    assert [curve(name, step) for step in (1, 5, 10)] == pytest.approx([1 / 11, 5 / 11, 10 / 11])
    assert curve(name, 1, warmup=0) == pytest.approx(1.0)


def test_curves_by_hand() -> None:
    assert curve("none", 5000) == 1.0
    assert [curve("cosine", t + 1) for t in (10, 60, 110, 500)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert curve("cosine", 36) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert [curve("linear", t + 1) for t in (10, 60, 110, 500)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert [curve("exponential", t + 1) for t in (10, 60, 110, 500)] == pytest.approx([1.0, 0.1**0.5, 0.1, 0.1])
    assert curve("exponential", 13, {"gamma": 0.9}) == pytest.approx(0.9**2)
    steps = [curve("step", t + 1, {"size": 30, "gamma": 0.5}) for t in (29, 30, 60, 3000)]
    assert steps == pytest.approx([1.0, 0.5, 0.25, 0.1])
    flat = [curve("wsd", t + 1, {"share": 0.5}) for t in (10, 55, 82.5, 110, 200)]
    assert flat == pytest.approx([1.0, 1.0, 0.55, 0.1, 0.1])
    assert [curve("inverse_sqrt", t + 1) for t in (10, 39, 10**6)] == pytest.approx([math.sqrt(10 / 11), 0.5, 0.1])
    assert lr_factor(3501, Decay(name="cosine"), warmup=100, horizon=3500, floor=0.1) == pytest.approx(0.1)
    assert lr_factor(1801, Decay(name="cosine"), warmup=100, horizon=3500, floor=0.1) == pytest.approx(0.55)


def drops_after(plateau: Plateau, value: float) -> int:
    plateau.observe(value)
    return plateau.drops


def test_plateau_counts_evaluations_and_resumes() -> None:
    first = Plateau(patience=2, threshold=0.01)
    fed = [3.0, 2.0, 1.995, 1.994, 1.5, 1.6, 1.6, 1.6, 1.6]
    drops = [drops_after(first, value) for value in fed[:5]]
    second = Plateau(patience=2, threshold=0.01)
    second.load_state_dict(first.state_dict())
    drops += [drops_after(second, value) for value in fed[5:]]
    assert drops == [0, 0, 0, 1, 1, 1, 2, 2, 3]
    decay = Decay(name="plateau", options={"factor": 0.5})
    assert lr_factor(50, decay, warmup=W, horizon=H, floor=0.2, drops=second.drops) == 0.2
    assert lr_factor(50, decay, warmup=W, horizon=H, floor=0.1, drops=2) == 0.25


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine", {"gamma": 0.9}, "no options"),
        ("step", {"gama": 0.1}, "size, gamma"),
        ("wsd", {"share": 0.0}, "share"),
        ("step", {"size": 0}, "at least 1"),
        ("plateau", {"patience": 0}, "patience"),
    ],
)
def test_an_option_of_another_curve_is_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decay(name=name, options=options)
