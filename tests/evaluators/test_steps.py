"""PerStepAccuracy against a count by hand, in plain Python loops."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from evaluators.intervals import wilson
from evaluators.steps import PerStepAccuracy, PerStepAccuracyConfig
from tests.conftest import fork_ranks

STEPS, ROWS, LENGTH, WORDS = 3, 12, 5, 4


def episode(seed: int, rows: int = ROWS) -> tuple[dict[str, Tensor], list[SimpleNamespace], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, WORDS, (rows, LENGTH), generator=generator, dtype=torch.int32)
    labels[torch.rand(rows, LENGTH, generator=generator) < 0.3] = -100
    labels[1] = -100  # an example without anything to score
    steps = []
    for number in range(STEPS):
        logits = torch.randn(rows, LENGTH, WORDS, generator=generator)
        known = torch.nn.functional.one_hot(labels.clamp(min=0).long(), WORDS)
        logits += known * 2.5 * number  # later steps are better
        steps.append(SimpleNamespace(logits=logits, q_halt_logits=torch.randn(rows, generator=generator)))
        steps[-1].q_halt_logits[0] = torch.nan  # which is no judgement, right or wrong
    return {"labels": labels}, steps, steps[-1].logits.argmax(-1)


def by_hand(parts: list[tuple[dict[str, Tensor], list[SimpleNamespace], int]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for number in range(STEPS):
        token, exact, judged, stops, examples = 0.0, 0, 0, 0, 0
        for batch, steps, valid in parts:
            for row in range(valid):
                hits = [
                    steps[number].logits[row, place].tolist().index(float(steps[number].logits[row, place].max()))
                    == label
                    for place, label in enumerate(batch["labels"][row].tolist())
                    if label != -100
                ]
                if not hits:
                    continue
                q = float(steps[number].q_halt_logits[row])
                examples += 1
                token += sum(hits) / len(hits)
                exact += all(hits)
                judged += not math.isnan(q) and (q >= 0) == all(hits)
                stops += q > 0
        name = f"step_{number + 1:02d}"
        values |= {
            f"accuracy/{name}": token / examples,
            f"exact_accuracy/{name}": exact / examples,
            f"q_halt_accuracy/{name}": judged / examples,
            f"would_halt/{name}": stops / examples,
        }
    values["examples"] = examples
    values["exact_accuracy_low"], values["exact_accuracy_high"] = wilson(exact, examples)
    return values


def test_equals_a_count_by_hand_over_batches_with_padding() -> None:
    evaluator = PerStepAccuracy(PerStepAccuracyConfig())
    parts = []
    for _ in range(2):  # begin() forgets the first round
        evaluator.begin()
        parts = []
        for seed, valid in ((0, ROWS), (1, ROWS), (2, 5), (3, 0)):
            batch, steps, preds = episode(seed)
            evaluator.update(batch, steps, preds, valid)
            parts.append((batch, steps, valid))
    result = evaluator.result()
    assert result == pytest.approx(by_hand(parts))
    assert result["exact_accuracy/step_01"] < result["exact_accuracy/step_03"]


def test_last_answer_is_the_given_one() -> None:
    batch, steps, preds = episode(0)
    steps[-1].logits = None
    evaluator = PerStepAccuracy(PerStepAccuracyConfig(confidence=0.5))
    evaluator.update(batch, steps, batch["labels"], ROWS)
    result = evaluator.result()
    assert result["exact_accuracy/step_03"] == 1.0
    assert result["exact_accuracy_low"] == wilson(ROWS - 1, ROWS - 1, 0.5)[0]
    steps[0].logits = None
    with pytest.raises(ValueError, match="step 1 of 3"):
        evaluator.update(batch, steps, preds, ROWS)


def test_without_steps_only_the_interval() -> None:
    evaluator = PerStepAccuracy(PerStepAccuracyConfig(per_step=False))
    assert not evaluator.needs_steps
    batch, steps, preds = episode(0)
    evaluator.update(batch, steps[-1:], preds, ROWS)
    assert set(evaluator.result()) == {"examples", "exact_accuracy_low", "exact_accuracy_high"}


def test_nothing_seen_is_none() -> None:
    evaluator = PerStepAccuracy(PerStepAccuracyConfig())
    empty = {"examples": 0.0, "exact_accuracy_low": None, "exact_accuracy_high": None}
    assert evaluator.result() == empty
    batch, steps, preds = episode(0)
    evaluator.update(batch, steps, preds, 0)
    assert evaluator.result() == empty


def test_memory_does_not_grow_with_the_split() -> None:
    evaluator = PerStepAccuracy(PerStepAccuracyConfig())
    for seed in range(5):
        evaluator.update(*episode(seed), ROWS)
    assert evaluator.sums is not None
    assert evaluator.sums.shape == (STEPS, 4)


def _rank(queue_path: str) -> None:
    from engine.distributed import rank, shutdown

    batch, steps, preds = episode(7)
    half = slice(rank() * 6, rank() * 6 + 6)
    cut = [SimpleNamespace(logits=s.logits[half], q_halt_logits=s.q_halt_logits[half]) for s in steps]
    evaluator = PerStepAccuracy(PerStepAccuracyConfig())
    evaluator.update({"labels": batch["labels"][half]}, cut, preds[half], 6)
    torch.save(evaluator.result(), f"{queue_path}.{rank()}")
    shutdown()


def test_two_ranks_equal_one(tmp_path) -> None:
    runs = fork_ranks(_rank, str(tmp_path / "result"))
    assert [run.code for run in runs] == [0, 0], runs[0].output + runs[1].output
    alone = PerStepAccuracy(PerStepAccuracyConfig())
    alone.update(*episode(7), ROWS)
    for rank in range(2):
        assert torch.load(tmp_path / f"result.{rank}", weights_only=True) == pytest.approx(alone.result())
    assert "RANK" not in os.environ
