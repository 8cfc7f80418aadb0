"""The loop, on a task so small that every number can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from engine.config import RunConfig
from engine.errors import Interrupted, RunFailure
from engine.loop.hooks import Hook
from engine.loop.reduce import GradientReducer
from engine.loop.trainer import Trainer
from engine.signals import StopSignal
from engine.task import ParamGroup, Runtime, TrainingPlan


class Line(nn.Module):
    """y = w * x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w * x


class LineTask:
    """Sum of w * x over rows [step, 2 * step], cut into `accumulation` micro-batches; NaN rows at chosen steps."""

    def __init__(self, runtime: Runtime, bad_steps: tuple[int, ...] = ()) -> None:
        self.module: nn.Module = Line()
        self.runtime, self.bad_steps = runtime, bad_steps
        self.evaluations: list[tuple[float, bool]] = []

    def micro_batches(self, step: int):
        rows = torch.tensor([1.0, 2.0, 3.0, 6.0]) * step
        if step in self.bad_steps:
            rows[0] = float("nan")
        return rows.chunk(self.runtime.accumulation)

    def loss(self, rows):
        total = self.module(rows).sum()
        count = torch.tensor(float(len(rows)))
        return total, count, {"loss": (total, count), "never": (torch.zeros(()), torch.zeros(()))}

    def after_step(self) -> None: ...

    def evaluate(self, *, final: bool) -> dict[str, float | None]:
        value = float(self.module.w.detach())
        self.evaluations.append((value, final))
        return {"eval/w": value}

    def param_groups(self):
        return [
            ParamGroup(
                name="all",
                optimizer="adam_atan2",
                lr=0.1,
                params=dict(self.module.named_parameters()),
                options={"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.0},
            )
        ]

    def state_dict(self):
        return {}

    def load_state_dict(self, state) -> None: ...


PLAN_KEYS = (
    *("eval_steps", "metric_steps", "final_eval", "final_like_others", "final_adds", "checkpoint_every_eval"),
    *("plateau", "metric_mode"),
)


def make(steps: int = 4, *, accumulation: int = 1, bad: tuple[int, ...] = (), **changes: Any):
    runtime = Runtime(
        device=torch.device("cpu"),
        dtype=torch.float32,
        attention="auto",
        seed=0,
        accumulation=accumulation,
        rank=0,
        world_size=1,
    )
    plan_keys = {k: changes.pop(k) for k in PLAN_KEYS if k in changes}
    plan = TrainingPlan(
        task=LineTask(runtime, bad), total_steps=steps, schedule=lambda step: 1.0, primary_metric="eval/w", **plan_keys
    )
    lines: list[tuple[int, dict[str, Any]]] = []
    saves: list[tuple[int, str]] = []
    config = RunConfig(accumulation=accumulation, **changes)
    trainer = Trainer(
        plan,
        config,
        runtime,
        save=lambda t, why: saves.append((t.step, why)),
        write=lambda step, values: lines.append((step, values)),
        stop=StopSignal(),
    )
    return trainer, lines, saves


def test_loss_is_divided_by_the_global_weight() -> None:
    trainer, lines, _ = make(1, final_eval=False)
    trainer.fit()
    step, values = lines[0]
    assert step == 1
    assert values["train/loss"] == pytest.approx(3.0)  # (1 + 2 + 3 + 6) / 4 at w = 1
    assert values["train/never"] is None
    assert values["train/grad_norm"] == pytest.approx(3.0)
    assert values["train/lr"] == pytest.approx(0.1)


def test_accumulation_changes_nothing() -> None:
    weights = []
    for accumulation in (1, 2, 4):
        trainer, _, _ = make(5, accumulation=accumulation)
        trainer.fit()
        weights.append(float(trainer.module.w.detach()))
    assert weights[0] == pytest.approx(weights[1], abs=1e-7)
    assert weights[0] == pytest.approx(weights[2], abs=1e-7)


@pytest.mark.parametrize(("interval", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_log_interval_sets_the_lines(interval: int, expected: list[int]) -> None:
    trainer, lines, _ = make(5, log_interval=interval, final_eval=False)
    trainer.fit()
    assert [step for step, _ in lines] == expected


def test_a_window_is_the_mean_over_its_steps() -> None:
    trainer, lines, _ = make(2, log_interval=2, final_eval=False)
    trainer.module.w.requires_grad_(True)
    trainer.fit()
    w1 = 1 - 0.1 * (torch.pi / 4) / 0.1 * 0.1 * 10 / 10  # only used to show that w moved between the two steps
    assert lines[0][1]["train/loss"] != pytest.approx(3.0)
    assert lines[0][1]["train/loss"] < (3.0 + 6.0) / 2
    assert w1 < 1


def test_evaluations_and_saves_fall_where_the_plan_says() -> None:
    trainer, lines, saves = make(6, eval_steps=frozenset({2, 4}), checkpoint_interval=3)
    trainer.fit()
    assert [step for step, values in lines if "eval/w" in values] == [2, 4, 6]
    assert [final for _, final in trainer.task.evaluations] == [False, False, True]
    assert saves == [(2, "step"), (3, "step"), (4, "step"), (6, "last")]


def test_evaluation_without_checkpoints() -> None:
    trainer, _, saves = make(4, eval_steps=frozenset({2}), checkpoint_every_eval=False)
    trainer.fit()
    assert saves == [(4, "last")]


def test_a_step_that_is_not_finite_is_skipped_whole() -> None:
    trainer, lines, _ = make(3, bad=(2,), ema=True, ema_rate=0.5, final_eval=False)
    trainer.fit()
    skipped = [values["train/skipped_steps"] for _, values in lines]
    assert skipped == [0, 1, 1]
    assert torch.isfinite(trainer.module.w).all()
    clean, _, _ = make(3, final_eval=False)
    clean.task.micro_batches = lambda step: LineTask.micro_batches(clean.task, {1: 1, 2: 3}[step])
    clean.last_step = 2
    clean.fit()
    assert float(clean.module.w.detach()) == float(trainer.module.w.detach())


def test_a_step_that_is_not_finite_leaves_the_average_where_it_is() -> None:
    averages = []
    for steps in (1, 3):
        trainer, _, _ = make(steps, bad=(2, 3), ema=True, ema_rate=0.9, final_eval=False)
        trainer.fit()
        averages.append(float(trainer.ema.shadow["w"]))
    assert averages[0] == averages[1] != float(trainer.module.w.detach())


def test_too_many_bad_steps_end_the_run() -> None:
    trainer, _, _ = make(9, bad=tuple(range(1, 10)), max_skipped_steps=3)
    with pytest.raises(RunFailure, match="max_skipped_steps=3"):
        trainer.fit()
    assert trainer.step == 4


def test_clip_bounds_the_norm_but_reports_the_true_one() -> None:
    trainer, lines, _ = make(1, grad_clip=0.5, final_eval=False)
    trainer.fit()
    assert lines[0][1]["train/grad_norm"] == pytest.approx(3.0)
    assert float(trainer.module.w.grad) == pytest.approx(0.5)


def test_signal_saves_once_and_raises() -> None:
    trainer, _, saves = make(6)

    class Ring(Hook):
        def after_step(self, trainer: Trainer) -> None:
            if trainer.step == 3:
                trainer._stop.received = "SIGTERM"

    trainer.hooks.append(Ring())
    with pytest.raises(Interrupted):
        trainer.fit()
    assert saves == [(3, "signal")]


def test_signal_during_evaluation_leaves_it_to_the_next_process() -> None:
    trainer, lines, saves = make(4, eval_steps=frozenset({2}))

    def interrupted(*, final: bool) -> dict[str, float | None]:
        raise Interrupted("during evaluation")

    trainer.task.evaluate = interrupted
    with pytest.raises(Interrupted):
        trainer.fit()
    assert saves == [(2, "signal")]
    assert trainer.evaluations.step == -1
    trainer.task.evaluate = lambda *, final: {"eval/w": 0.0}
    trainer.fit()
    assert [step for step, values in lines if "eval/w" in values] == [2, 4]


def test_out_of_memory_names_the_batch_key() -> None:
    trainer, _, _ = make(2)
    trainer.plan = replace(trainer.plan, batch_key="global_batch_size", batch_rows=64)

    def full(rows):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trainer.task.loss = full
    with pytest.raises(RunFailure, match=r"global_batch_size \(now 64\).*accumulation=2") as caught:
        trainer.fit()
    assert "\n" not in str(caught.value)


def test_other_runtime_errors_stay_what_they_are() -> None:
    trainer, _, _ = make(2)

    def broken(rows):
        raise RuntimeError("shapes do not match")

    trainer.task.loss = broken
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.fit()


def test_max_steps_is_a_budget_not_a_horizon() -> None:
    trainer, _, saves = make(10, max_steps=3)
    trainer.fit()
    assert trainer.step == 3
    assert saves == [(3, "last")]
    assert trainer.plan.total_steps == 10


def test_averaged_weights_are_evaluated_and_raw_ones_trained() -> None:
    trainer, _, _ = make(3, ema=True, ema_rate=0.9)
    trainer.fit()
    evaluated = trainer.task.evaluations[-1][0]
    assert evaluated > float(trainer.module.w.detach())  # the average lags behind a falling weight


def test_reducer_reports_not_finite_gradients_even_when_the_loss_is() -> None:
    trainer, _, _ = make(1)
    reducer: GradientReducer = trainer.reducer
    reducer.start()
    trainer.module.w.grad.fill_(float("inf"))
    _, ok = reducer.finish(torch.tensor(1.0), torch.tensor(1.0), clip=None)
    assert float(ok) == 0.0


@pytest.mark.parametrize("parallel", ["flat", "fsdp"])
def test_a_step_without_any_weight_has_a_gradient_of_zero(parallel: str) -> None:
    """Whether the gradients are views of one buffer or not: nothing was scored, so nothing is divided by zero."""
    trainer, _, _ = make(1)
    reducer = GradientReducer(trainer.task, trainer.task.param_groups(), parallel=parallel)
    reducer.start()
    loss = 0.0 * trainer.module(torch.ones(3)).sum()
    loss.backward()
    norm, ok = reducer.finish(loss, torch.tensor(0.0), clip=1.0)
    assert (float(norm), float(ok), float(trainer.module.w.grad)) == (0.0, 1.0, 0.0)
