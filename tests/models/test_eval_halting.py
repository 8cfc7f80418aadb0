"""Latched halting in evaluation: a row keeps the answer of the step at which it halts, whatever the others do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.recursive_reasoning.hrm import HRM, HRMConfig
from models.recursive_reasoning.trm import TRM, TRMConfig
from tests.models.parity import BASE, batch, make

CASES = {
    "trm": (TRM, TRMConfig(**{**BASE, "halt_max_steps": 6}, H_cycles=1, L_cycles=1, puzzle_emb_len=1)),
    "hrm": (HRM, HRMConfig(**{**BASE, "halt_max_steps": 6}, H_layers=1, L_layers=1)),
}
ROWS = 12


def pair(name, halting_bias=-0.3):
    """The same model with fixed and with latched evaluation; its rows halt at different steps."""
    model_class, config = CASES[name]
    models = [make(model_class, replace(config, eval_halting=kind)).eval() for kind in ("fixed", "latched")]
    with torch.no_grad():
        for model in models:
            model.inner.q_head.bias.copy_(torch.tensor([halting_bias, 0.0]))
    return models


@pytest.mark.parametrize("name", sorted(CASES))
def test_rows_keep_the_answer_of_the_step_at_which_they_halt(name):
    fixed, latched = pair(name)
    every = list(fixed.think(batch(1, ROWS)))
    want = []
    for row in range(ROWS):
        for number, output in enumerate(every, start=1):
            q = (output.q_halt_logits[row], output.q_continue_logits[row])
            if q[0] > (q[1] if name == "hrm" else 0) or number == 6:
                want.append((number, output))
                break
    steps = [number for number, _ in want]
    assert len(set(steps)) > 2  # a case that tells something: early, late and last
    result = latched(batch(1, ROWS))
    assert result.carry.steps.tolist() == steps
    assert result.carry.halted.all()
    for row, (_, output) in enumerate(want):
        for key in ("logits", "q_halt_logits", "q_continue_logits"):
            torch.testing.assert_close(getattr(result, key)[row], getattr(output, key)[row], rtol=0, atol=1e-12)


def test_every_step_of_a_latched_episode():
    fixed, latched = pair("trm")
    plain, kept = list(fixed.think(batch(1, ROWS))), list(latched.think(batch(1, ROWS)))
    assert len(kept) == len(plain) == 6
    final = latched(batch(1, ROWS))
    for number, (free, output) in enumerate(zip(plain, kept, strict=True), start=1):
        assert output.carry.steps.tolist() == final.carry.steps.clamp(max=number).tolist()
        running = final.carry.steps >= number
        torch.testing.assert_close(output.logits[running], free.logits[running], rtol=0, atol=1e-12)
        done = final.carry.steps <= number
        torch.testing.assert_close(output.logits[done], final.logits[done], rtol=0, atol=1e-12)
    assert torch.equal(kept[-1].logits, final.logits)


def test_nothing_is_computed_once_all_rows_have_halted(monkeypatch):
    _, latched = pair("trm", halting_bias=50.0)
    calls, recur = [], latched.inner.recur
    monkeypatch.setattr(latched.inner, "recur", lambda *args: calls.append(1) or recur(*args))
    assert latched(batch(0)).carry.steps.tolist() == [1] * 4
    assert len(list(latched.think(batch(0), steps=9))) == 9
    assert len(calls) == 2


def test_deeper_thinking_and_rows_that_never_halt():
    fixed, latched = pair("trm", halting_bias=-50.0)
    for steps in (None, 1, 9):
        plain, kept = list(fixed.think(batch(0), steps)), list(latched.think(batch(0), steps))
        for a, b in zip(plain, kept, strict=True):
            assert torch.equal(a.logits, b.logits)
        assert kept[-1].carry.halted.all()
        assert kept[-1].carry.steps.tolist() == [len(plain)] * 4


def test_evaluation_draws_no_exploration():
    _, latched = pair("trm", halting_bias=50.0)
    latched.halt_exploration_prob = 1.0
    before = torch.get_rng_state()
    assert latched(batch(0)).carry.steps.tolist() == [1] * 4
    assert torch.equal(before, torch.get_rng_state())


def test_training_is_untouched():
    fixed, latched = (model.train() for model in pair("trm"))
    carries = [None, None]
    for i in range(4):
        outputs = [model(batch(i), carry) for model, carry in zip((fixed, latched), carries, strict=True)]
        carries = [output.carry for output in outputs]
        assert torch.equal(*(output.logits for output in outputs))
        assert torch.equal(*(carry.halted for carry in carries))
