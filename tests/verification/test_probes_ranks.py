"""DYN717: two gloo ranks compute what one process computes, and a task that breaks this is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import engine.distributed
import tasks.recursive_reasoning.build as building
import tasks.recursive_reasoning.task as tasks
from engine.distributed import rank
from tests.verification.probing import HRM, around, fails, findings_of

CODE = "DYN717"


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [(HRM, ()), ("cfg_pretrain_sudoku_4x4", ("ema=true", "grad_clip=0.1", "accumulation=4"))],
)
def test_a_pair_equals_one_process(recipe: str, overrides: tuple[str, ...]) -> None:
    assert [finding.level for finding in findings_of(CODE, *overrides, recipe=recipe)] == ["PASS"]


def test_a_loss_divided_by_the_rows_of_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def divided(loss: Any, *args: Any) -> Any:
        total, weight, metrics = loss(*args)
        return total / weight, 1.0, metrics

    around(monkeypatch, tasks.RecursiveReasoningTask, "loss", divided)
    assert findings_of(CODE)[0].level == "PASS"  # equal parts: the mean of means is the mean

    def uneven(loss: Any, *args: Any) -> Any:
        total, weight, metrics = loss(*args)
        return total, weight * (1 + rank()), metrics

    around(monkeypatch, tasks.RecursiveReasoningTask, "loss", uneven)
    assert "another gradient than one process" in fails(CODE)


def test_weights_that_drift_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_rate(groups: Any, *args: Any, **kwargs: Any) -> Any:
        return [replace(group, lr=group.lr * (1 + rank())) for group in groups(*args, **kwargs)]

    around(monkeypatch, building, "param_groups", other_rate)
    assert "the two ranks hold different" in fails(CODE)


def test_embedding_rows_that_stay_with_their_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.distributed, "all_gather_rows", lambda rows: rows)
    assert "puzzle_emb" in fails(CODE)


def test_a_rank_that_stops_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(loss: Any, *args: Any) -> Any:
        if rank() == 1:
            raise ValueError("no rows for me")
        return loss(*args)

    around(monkeypatch, tasks.RecursiveReasoningTask, "loss", breaks)
    assert "rank 1 stopped with ValueError: no rows for me" in fails(CODE)
    assert not torch.distributed.is_initialized()
