"""A seeded part of the storm: mutated commands work or end in one line. `python -m tests.storm` has more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storm.commands import Outcome, commands, execute, judge, keys


@pytest.mark.parametrize("seed", range(24))
def test_a_mutated_command_works_or_says_why_not_in_one_line(workplace: Path, seed: int) -> None:
    ((script, words),) = commands(seed=1000 + seed, count=1)
    before = sorted(path.name for path in workplace.parent.iterdir())
    outcome = execute(script, words, workplace)
    assert not judge(outcome), f"{script}.py {words}: {judge(outcome)}\n{outcome.output[-2000:]}"
    assert sorted(path.name for path in workplace.parent.iterdir()) == before


def test_the_storm_reaches_every_key_and_is_the_same_each_time() -> None:
    assert list(commands(3, 50)) == list(commands(3, 50))
    assert {"lr", "arch.L_cycles", "arch.loss.precision", "arch.subgoal_head.gating"} <= set(keys("pretrain"))
    assert {"learning_rate", "arch.n_layer", "optimizer.options"} <= set(keys("train"))


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (Outcome(0, "done", 1.0), ""),
        (Outcome(2, "warning: x\nerror: lr: no\n", 1.0), ""),
        (Outcome(1, "Traceback (most recent call last):\n", 1.0), "a traceback"),
        (Outcome(2, "", 1.0), "no line that names the problem"),
        (Outcome(-11, "", 1.0), "died of signal 11"),
        (Outcome(-14, "", 60.0), "took 60 s"),
        (Outcome(2, "error: got 'hunter2-of-the-storm'", 1.0), "prints a secret of the environment"),
    ],
)
def test_the_judge(outcome: Outcome, fault: str) -> None:
    assert judge(outcome) == fault
