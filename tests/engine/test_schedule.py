"""The schedule against the golden table and the written-out checks."""

from __future__ import annotations

import numpy as np
import pytest

from engine.schedule import warmup_cosine


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
