"""What a resumed trainer counts, averages and compares: the same as one that was never stopped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.checkpoint.store import CheckpointStore
from engine.errors import RunFailure
from engine.loop.metrics import SkippedSteps
from engine.loop.schedule import Plateau
from tests.engine.test_trainer import make


def stored(trainer: Any, **config: Any) -> tuple[Any, dict[str, Any]]:
    """What a checkpoint of `trainer` holds."""
    model = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    average = None if trainer.ema is None else {n: value.clone() for n, value in trainer.ema.state_dict().items()}
    extra = {"spent": {"seconds": trainer.seconds, "cpu_seconds": trainer.cpu_seconds}}  # as Session.save does
    checkpoint = SimpleNamespace(model=model, ema=average, config=config, step=trainer.step, extra=extra)
    return checkpoint, trainer.state_dict()


# --- averages ---------------------------------------------------------------------------------------------------------


def test_an_average_turned_on_at_a_resume_begins_with_the_trained_weights() -> None:
    first, _, _ = make(8, max_steps=4)
    first.fit()
    trained = float(first.module.w.detach())
    second, _, _ = make(8, max_steps=5, ema=True, ema_rate=0.999)
    second.load(*stored(first, ema=False))
    assert float(second.ema.shadow["w"]) == trained
    second.fit()
    assert second.task.evaluations[-1][0] == pytest.approx(trained, abs=1e-3)  # from random weights: 1.0


def test_an_average_goes_on_with_another_rate_and_may_be_turned_off() -> None:
    first, _, _ = make(8, max_steps=4, ema=True, ema_rate=0.5)
    first.fit()
    average, trained = float(first.ema.shadow["w"]), float(first.module.w.detach())
    assert average != trained
    second, _, _ = make(8, max_steps=5, ema=True, ema_rate=0.9)
    second.load(*stored(first, ema=True))
    assert float(second.ema.shadow["w"]) == average
    second.fit()
    expected = 0.9 * average + 0.1 * float(second.module.w.detach())
    assert float(second.ema.shadow["w"]) == pytest.approx(expected)
    third, _, _ = make(8, max_steps=5)
    third.load(*stored(first, ema=True))
    third.fit()
    assert third.task.evaluations[-1][0] == float(third.module.w.detach())


def test_an_optimizers_own_average_is_not_taken_for_ours() -> None:
    first, _, _ = make(8, max_steps=4)
    first.fit()
    checkpoint, state = stored(first, ema=False)
    checkpoint.ema = {"w": torch.full((1,), 5.0)}  # what a schedule-free optimizer evaluates
    second, _, _ = make(8, ema=True)
    second.load(checkpoint, state)
    assert torch.equal(second.ema.shadow["w"], checkpoint.model["w"])


# --- plateau ----------------------------------------------------------------------------------------------------------


def plateau_run(steps: int, **changes: Any) -> Any:
    """Evaluations after steps 4, 8, ... whose value is 0.5 each time, so that each but the first waits."""
    plateau = Plateau(patience=2, threshold=0.0)
    trainer, _, _ = make(20, eval_steps=range(4, 21, 4), plateau=plateau, max_steps=steps, **changes)
    trainer.task.evaluate = lambda *, final: {"eval/w": 0.5}
    return trainer


@pytest.mark.parametrize("stop", [3, 4, 5, 8, 9])
def test_a_plateau_counts_what_the_whole_run_counts(stop: int) -> None:
    whole = plateau_run(20)
    whole.fit()
    assert (whole.plan.plateau.drops, whole.plan.plateau.waited) == (2, 0)
    first = plateau_run(stop)
    first.fit()
    second = plateau_run(20)
    second.load(*stored(first))
    second.fit()
    assert second.plan.plateau.state_dict() == whole.plan.plateau.state_dict()


def test_a_plateau_of_an_older_checkpoint_goes_on() -> None:
    first = plateau_run(8)
    first.fit()
    checkpoint, state = stored(first)
    del state["trainer"]["plateau"]
    state["task"] = {"plateau": {"best": 0.25, "waited": 1, "drops": 3}}
    second = plateau_run(20)
    second.load(checkpoint, state)
    assert second.plan.plateau.drops == 3


def test_no_value_is_no_improvement() -> None:
    plateau = Plateau(patience=3, threshold=0.0)
    for value in (float("nan"), None, 1.0):
        plateau.observe(value)
        assert plateau.drops == 0
    assert plateau.best == 1.0
    assert plateau.waited == 0


# --- steps that are called off ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_step_that_is_called_off_leaves_the_window_its_other_steps(accumulation: int) -> None:
    trainer, lines, _ = make(3, bad=(2,), log_interval=3, final_eval=False, accumulation=accumulation)
    trainer.fit()
    ((_, values),) = lines
    assert values["train/skipped_steps"] == 1
    alone, others, _ = make(3, bad=(2,), log_interval=1, final_eval=False, accumulation=accumulation)
    alone.fit()
    one, none, three = (line["train/loss"] for _, line in others)
    assert none is None
    assert values["train/loss"] == pytest.approx((one + three) / 2)


@pytest.mark.parametrize("log_interval", [1, 7, 1000])
@pytest.mark.parametrize("first", [1, 5])
def test_bad_steps_in_a_row_end_the_run_at_once(log_interval: int, first: int) -> None:
    trainer, lines, _ = make(50, bad=tuple(range(first, 51)), max_skipped_steps=3, log_interval=log_interval)
    with pytest.raises(RunFailure, match="4 steps in a row"):
        trainer.fit()
    assert trainer.step == first + 3
    assert lines[-1][0] == first + 3  # the open window is not lost
    assert lines[-1][1]["train/skipped_steps"] == 4


def test_bad_steps_apart_do_not_end_the_run() -> None:
    trainer, _, _ = make(12, bad=(1, 2, 4, 5, 7, 8, 11, 12), max_skipped_steps=2, log_interval=5)
    trainer.fit()
    assert trainer.skipped.total() == 8


def test_a_row_of_bad_steps_goes_on_over_a_resume() -> None:
    first, _, _ = make(9, bad=(3, 4, 5, 6), max_skipped_steps=3, max_steps=4)
    first.fit()
    second, _, _ = make(9, bad=(3, 4, 5, 6), max_skipped_steps=3)
    second.load(*stored(first))
    with pytest.raises(RunFailure):
        second.fit()
    assert second.step == 6


def test_counts_of_an_earlier_version_are_read() -> None:
    skipped = SkippedSteps(torch.device("cpu"))
    skipped.load(torch.tensor([5.0, 2.0, 4.0]))
    assert (skipped.total(), skipped.in_a_row(exact=True)) == (5, 2)


def test_a_count_that_lags_is_the_one_that_is_named() -> None:
    """On a GPU the run ends a step late; that step may have been a good one."""

    class Lagging(SkippedSteps):
        def in_a_row(self, *, exact: bool) -> int:
            before, self.before = getattr(self, "before", 0), super().in_a_row(exact=True)
            return self.before if exact else before

    trainer, _, _ = make(9, bad=(3, 4), max_skipped_steps=1)
    trainer.skipped = Lagging(torch.device("cpu"))
    with pytest.raises(RunFailure, match=r"step 5: 2 steps in a row .* more than max_skipped_steps=1"):
        trainer.fit()


def test_lines_of_a_gpu_come_a_step_later_and_before_all_that_follows() -> None:
    """There a line is written while the next step runs; what a checkpoint or an evaluation finds is the same."""
    seen = []
    for wait in (False, True):
        options = {"eval_steps": (3, 7), "checkpoint_interval": 4, "log_interval": 2, "stats_interval": 3}
        trainer, _, _ = make(9, bad=(5,), **options)
        trainer._defer_lines = wait
        events: list[Any] = []
        trainer._write = lambda step, values, events=events: events.append((step, dict(values)))
        trainer._save = lambda t, why, events=events: events.append((t.step, why))
        trainer.fit()
        for _, what in events:
            if isinstance(what, dict):
                for name in [name for name in what if name.startswith("time/")]:
                    del what[name]
        seen.append(events)
    assert seen[0] == seen[1]
    assert [step for step, what in seen[1] if "train/loss" in what] == [2, 4, 6, 8, 9]
    trainer, lines, _ = make(5, bad=(3, 4), max_skipped_steps=1)
    trainer._defer_lines = True
    with pytest.raises(RunFailure):
        trainer.fit()
    assert [step for step, _ in lines] == [1, 2, 3, 4]  # none is lost


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_counts_on_a_gpu_lag_one_step_and_are_exact_on_request() -> None:
    skipped = SkippedSteps(torch.device("cuda"))
    seen = []
    for ok in (0.0, 0.0, 0.0, 1.0):
        skipped.add(torch.tensor(ok, device="cuda"))
        skipped.send()
        seen.append((skipped.in_a_row(exact=False), skipped.in_a_row(exact=True)))
    assert seen == [(0, 1), (1, 2), (2, 3), (3, 0)]


# --- like is compared with like ---------------------------------------------------------------------------------------


def judged(trainer: Any, values: dict[tuple[int, bool], float]) -> list[Any]:
    """Run with the primary metric given by (step, final); the metric of every save."""
    metrics: list[Any] = []
    trainer._save = lambda t, why: metrics.append((t.step, t.evaluations.metric(t.step)))
    trainer.task.evaluate = lambda *, final: {"eval/w": values[trainer.step, final]}
    trainer.fit()
    return metrics


def test_the_figure_of_a_whole_split_is_not_compared_with_those_of_a_subset() -> None:
    values = {(2, False): 0.6, (4, False): 0.5, (6, False): 0.4, (6, True): 0.9}
    trainer, lines, _ = make(6, eval_steps=range(2, 7, 2), final_like_others=False, metric_mode="max")
    metrics = judged(trainer, values)
    assert [(step, metric["value"]) for step, metric in metrics] == [(2, 0.6), (4, 0.5), (6, 0.4)]
    assert (trainer.evaluations.early_stop.best, trainer.evaluations.early_stop.best_step) == (0.6, 2)
    assert trainer.evaluations.results == {"eval/w": 0.9}  # the final figure is what the run reports
    assert [values["eval/w"] for _, values in lines if "eval/w" in values] == [0.6, 0.5, 0.4, 0.9]


def test_an_interruption_at_an_evaluation_changes_no_comparison() -> None:
    values = {(2, False): 0.3, (4, False): 0.4, (4, True): 0.9, (6, False): 0.5, (6, True): 0.8}
    keys: dict[str, Any] = {"eval_steps": range(2, 7, 2), "final_like_others": False, "metric_mode": "max"}
    whole, _, _ = make(6, **keys)
    judged(whole, values)
    first, _, _ = make(6, max_steps=4, **keys)
    judged(first, values)
    second, _, _ = make(6, **keys)
    second.load(*stored(first))
    assert judged(second, values)[-1][1]["value"] == 0.5
    assert second.evaluations.early_stop.state_dict() == whole.evaluations.early_stop.state_dict()
    assert second.evaluations.early_stop.best_step == 6


def test_a_final_figure_alone_is_the_best_until_there_is_another(tmp_path) -> None:
    keys: dict[str, Any] = {"eval_steps": range(4, 9, 4), "final_like_others": False, "metric_mode": "max"}
    values = {(2, True): 0.9, (4, False): 0.1, (8, False): 0.2, (8, True): 0.95}
    first, _, _ = make(8, max_steps=2, **keys)
    ((_, metric),) = judged(first, values)
    assert metric == {"name": "eval/w", "value": 0.9, "goal": "max", "final": True, "covers": ""}
    second, _, _ = make(8, **keys)
    second.load(*stored(first))
    metrics = judged(second, values)
    assert second.evaluations.early_stop.best == 0.2

    store = CheckpointStore(tmp_path, "pretrain")
    best = []
    for step, each in [(2, metric), *metrics, (9, metric)]:
        store.save(step, model={"w": torch.ones(1)}, config={}, metric=each, state={})
        best.append(store.best().name)
    assert best == ["step_2", "step_4", "step_8", "step_8"]


def test_evaluation_steps_without_a_list_of_them() -> None:
    trainer, lines, _ = make(10**15, eval_steps=range(0, 10**15 + 1, 7), max_steps=8)
    trainer.fit()
    assert [step for step, values in lines if "eval/w" in values] == [0, 7, 8]


# --- what a step leaves out -------------------------------------------------------------------------------------------


def test_what_a_step_leaves_out_is_neither_moved_nor_decayed() -> None:
    trainer, _, _ = make(4, final_eval=False)
    parameter = trainer.module.w
    trainer.task.left_out = lambda: [parameter] if trainer.step == 2 else []
    moved = []
    before = parameter.detach().clone()
    optimizer = trainer.optimizers["all"]
    optimizer.weight_decay = 0.5
    for step in (1, 2, 3):
        trainer.last_step = step
        trainer.fit()
        moved.append(not torch.equal(before, parameter.detach()))
        before = parameter.detach().clone()
    assert moved == [True, False, True]
