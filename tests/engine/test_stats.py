"""Norms by group of parameters against norms taken by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from engine.loop.metrics import GroupStats
from engine.task import ParamGroup
from tests.conftest import metrics, run_ranks, run_script
from tests.e2e.test_ranks import BASE
from tests.engine.test_trainer import make


class Table:
    def __init__(self) -> None:
        self.weights = torch.full((3, 3), 2.0)

    def take_pending(self): ...


def groups() -> list[ParamGroup]:
    def dense(name: str, *shapes: tuple[int, ...]) -> ParamGroup:
        params = {f"p{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}
        for param in list(params.values())[:2]:
            param.grad = torch.randn_like(param)
        return ParamGroup(name=name, optimizer="adamw", lr=1.0, params=params)

    return [
        dense("body", (3, 4), (5,), (2,)),
        dense("head", (2, 2)),
        ParamGroup(name="rows", optimizer="sparse_sign_sgd", lr=1.0, params=Table()),
    ]


@pytest.mark.parametrize("clip", [None, 0.5, 1e9])
def test_norms_by_hand(clip: float | None) -> None:
    torch.manual_seed(0)
    made = groups()
    dense = {g.name: list(g.params.values()) for g in made[:2]}
    true = {
        name: torch.cat([p.grad.flatten() for p in params if p.grad is not None]).norm()
        for name, params in dense.items()
    }
    weight = {name: torch.cat([p.detach().flatten() for p in params]).norm() for name, params in dense.items()}
    norm = torch.stack(list(true.values())).norm()
    for params in dense.values():  # what the reducer does
        for p in params:
            if p.grad is not None and clip is not None:
                p.grad.mul_(min(1.0, clip / float(norm)))
    stats = GroupStats(made, 2)
    assert [stats.due(step) for step in (1, 2, 3, 4)] == [False, True, False, True]
    stats.before(norm, clip)
    with torch.no_grad():
        for p in dense["body"]:
            p.mul_(0.75)
    stats.after()
    values = stats.flush()
    for name in dense:
        assert values[f"grad_norm_{name}"] == pytest.approx(float(true[name]), rel=1e-5)
        assert values[f"weight_norm_{name}"] == pytest.approx(float(weight[name]), rel=1e-5)
    assert values["update_ratio_body"] == pytest.approx(0.25, rel=1e-5)
    assert values["update_ratio_head"] == 0.0
    assert values["weight_norm_rows"] == pytest.approx(6.0)
    assert stats.flush() == {}


def test_a_step_that_is_not_finite_is_shown_and_does_no_harm() -> None:
    weights = []
    for interval in (None, 1):
        trainer, lines, _ = make(3, bad=(2,), stats_interval=interval, final_eval=False)
        trainer.fit()
        weights.append(float(trainer.module.w.detach()))
    assert weights[0] == weights[1]
    assert lines[1][1]["train/grad_norm_all"] != lines[1][1]["train/grad_norm_all"]  # NaN
    assert lines[1][1]["train/update_ratio_all"] == 0.0
    assert lines[2][1]["train/update_ratio_all"] > 0.0


def test_what_a_log_line_is_owed_is_part_of_the_state() -> None:
    trainer, lines, _ = make(4, stats_interval=2, log_interval=4, final_eval=False)
    trainer.last_step = 3
    trainer.config.log_interval = 100
    trainer.stats.flush = dict  # the log line of the artificial end
    trainer.fit()
    again, more, _ = make(4, stats_interval=3, log_interval=4, final_eval=False)
    again.stats.load_state_dict(trainer.stats.state_dict())
    assert again.stats.flush().keys() == {"grad_norm_all", "weight_norm_all", "update_ratio_all"}
    assert lines
    assert not more


def test_ranks_and_accumulation_have_the_same_norms(workplace: Path) -> None:
    argv = [*BASE, "max_steps=6", "stats_interval=3", "grad_clip=0.01", "verify=off"]
    assert run_script("pretrain", *argv, "run_name=alone", cwd=workplace).code == 0
    for result in run_ranks("pretrain", *argv, "accumulation=2", cwd=workplace):
        assert result.code == 0, result.output
    for line, other in zip(*(metrics(workplace / "checkpoints/p" / name) for name in ("r", "alone")), strict=True):
        assert {k for k in line if "norm_" in k} == {k for k in other if "norm_" in k}
        for key in (k for k in line if "norm_" in k or "ratio" in k):
            assert line[key] == pytest.approx(other[key], rel=1e-4), key
        if "train/grad_norm_trunk" in line and line["step"] in (3, 6):
            assert line["train/grad_norm_trunk"] == pytest.approx(line["train/grad_norm"], rel=1e-5)
    assert any("train/weight_norm_puzzle_emb" in line for line in metrics(workplace / "checkpoints/p/r"))
