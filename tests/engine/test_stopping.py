"""Early stopping: when it counts, what it writes, and that a resume stops where the whole run stops."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from engine.config import RunConfig
from engine.errors import Interrupted, UsageError
from engine.loop import trainer as trainer_module
from engine.loop.evaluations import EarlyStop, check_early_stop
from engine.loop.schedule import Plateau
from engine.run.load_run import misfit
from tests.conftest import metrics, run_script, status_of
from tests.e2e.test_ranks import final
from tests.engine.test_trainer import make
from tests.engine.test_trainer_resume import stored

RUN = """
    --config-name=cfg_pretrain_sudoku_4x4 +debug=tiny device=cpu project_name=p epochs=40 eval_interval=1
    eval_max_examples=2 final_eval_max_examples=2 eval_batch_size=2 max_steps=400 select_on=test global_batch_size=8
    log_interval=5 verify=off
""".split()


def stops_at(values: list, *, direction: str = "max", patience: int = 2, min_delta: float = 0.0) -> int | None:
    early = EarlyStop(RunConfig(early_stop_patience=patience, early_stop_min_delta=min_delta), direction=direction)
    for number, value in enumerate(values, 1):
        early.update(value, number, counts=True)
        if early.due:
            return number
    return None


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([1, 2, 3, 4], {}, None),
        ([1, 2, 2, 2], {}, 4),  # equal is not better
        ([1, 2, 1, 3, 1, 1], {}, 6),
        ([4, 3, 2, 1], {"direction": "min"}, None),
        ([4, 5, 5], {"direction": "min"}, 3),
        ([1.0, 1.04, 1.08, 1.12], {"min_delta": 0.1, "patience": 3}, None),  # small steps add up to one that counts
        ([1.0, 1.04, 1.08, 1.09], {"min_delta": 0.1, "patience": 3}, 4),
        ([None, float("nan"), 1], {}, 2),
        ([0.5, None, 0.6, float("nan"), 0.6], {}, 5),
        ([float("inf"), 0.5, 0.6, 0.5, 0.5], {}, 5),  # as little progress as NaN
        ([float("-inf"), 4, 3, 2], {"direction": "min"}, None),
    ],
)
def test_patience(values: list, options: dict, expected: int | None) -> None:
    assert stops_at(values, **options) == expected


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_metric_that_is_not_finite_is_never_the_best(value: float) -> None:
    """A checkpoint that called it the best would be refused by every resume."""
    trainer, _, _ = make(4, eval_steps=(2,), plateau=Plateau(patience=1, threshold=0.0))
    fresh = trainer.state_dict()
    trainer.task.evaluate = lambda *, final: {"eval/w": value}
    trainer.fit()
    state = trainer.state_dict()["trainer"]
    assert state["results"]["eval/w"] == pytest.approx(value, nan_ok=True)
    assert misfit(state, fresh["trainer"], "state") is None


def falling(steps: int = 12, **changes):
    """A run evaluated after every second step, whose metric (to be raised) only falls."""
    trainer, lines, saves = make(steps, eval_steps=frozenset(range(2, steps, 2)), **changes)
    trainer.evaluations.early_stop.sign = 1.0
    return trainer, lines, saves


def test_the_stop_is_an_ordinary_end() -> None:
    trainer, lines, saves = falling(early_stop_patience=2, log_interval=4)
    trainer.fit()
    assert trainer.step == 6
    assert trainer.stopped_early
    assert [final for _, final in trainer.task.evaluations] == [False, False, False]  # the final one would be the same
    assert saves[-1] == (6, "last")
    assert [step for step, values in lines if "train/loss" in values] == [4, 6]  # the open window is not lost
    assert trainer.evaluations.early_stop.best_step == 2


def test_a_time_budget_ends_the_run_and_counts_on_after_a_resume(monkeypatch, capsys) -> None:
    clock = itertools.count()
    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: float(next(clock)))  # a step lasts one second
    trainer, lines, saves = make(8, max_seconds=3, log_interval=2)
    trainer.fit()
    assert trainer.step == 3
    assert saves == [(3, "last")]
    assert [step for step, values in lines if "train/loss" in values] == [2, 3]
    assert "step 3: max_seconds=3 is up (3.00 s of training): resume=true and a larger" in capsys.readouterr().out
    for budget, end in ((3, 3), (5, 5), (None, 8)):
        resumed, _, _ = make(8, max_seconds=budget)
        resumed.load(*stored(trainer))
        resumed.fit()
        assert resumed.step == end
    whole, _, _ = make(8)
    whole.fit()
    assert torch.equal(resumed.module.w, whole.module.w)


def test_seconds_count_on_whether_or_not_there_was_a_budget(monkeypatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(trainer_module.time, "process_time", lambda: 0.5 * next(clock))  # counts as well
    first, _, _ = make(8, max_steps=3)
    first.fit()
    checkpoint, state = stored(first)
    resumed, lines, _ = make(8, max_seconds=first.seconds + 1)
    resumed.load(checkpoint, state)
    resumed.fit()
    assert resumed.step == 4  # of a new clock it would be more
    assert [v["time/cpu_s"] for _, v in lines if "time/cpu_s" in v][-1] > first.cpu_seconds > 0
    checkpoint.extra = {}
    earlier, _, _ = make(8, max_seconds=1e9)
    earlier.load(checkpoint, {**state, "trainer": {**state["trainer"], "seconds": 7.0}})  # by an earlier version
    assert (earlier.seconds, earlier.cpu_seconds) == (7.0, 0.0)


def test_patience_that_ends_with_the_run_is_no_early_stop() -> None:
    trainer, _, _ = falling(6, early_stop_patience=2, final_eval=True)
    trainer.fit()
    assert trainer.step == 6
    assert not trainer.stopped_early


def test_a_final_evaluation_that_covers_more_is_made_after_an_early_stop() -> None:
    trainer, lines, saves = falling(early_stop_patience=2, final_like_others=False)
    trainer.fit()
    assert [final for _, final in trainer.task.evaluations] == [False, False, False, True]
    assert [step for step, values in lines if "eval/w" in values] == [2, 4, 6, 6]
    assert saves[-1] == (6, "last")


def test_a_final_evaluation_that_adds_figures_is_made_after_an_early_stop() -> None:
    """And where an ordinary one was made before an end at its step was known; it counts once."""
    trainer, lines, saves = falling(early_stop_patience=2, final_adds=True)
    trainer.fit()
    assert [final for _, final in trainer.task.evaluations] == [False, False, False, True]
    assert [step for step, values in lines if "eval/w" in values] == [2, 4, 6, 6]
    assert saves[-1] == (6, "last")
    counted = trainer.evaluations.early_stop.state_dict()

    again, more, _ = falling(early_stop_patience=2, final_adds=True)
    again.load(*stored(trainer))
    again.fit()
    assert (again.step, more) == (6, [])

    first, _, _ = falling(final_adds=True)
    first.fit()
    assert [final for _, final in first.task.evaluations] == [False] * 5 + [True]  # at the end it takes their place

    stopped, _, _ = falling(early_stop_patience=9, max_steps=6, final_adds=True)
    stopped.load(*stored(trainer))
    stopped.evaluations.final_step = -1  # as after a signal at step 6, before that was the end
    stopped.fit()
    assert stopped.task.evaluations == trainer.task.evaluations[-1:]
    assert stopped.evaluations.early_stop.state_dict() == counted


def test_evaluations_without_the_metric_do_not_count() -> None:
    trainer, _, _ = falling(metric_steps=(2, 6, 10), early_stop_patience=2)
    evaluate = trainer.task.evaluate
    trainer.task.evaluate = lambda *, final: evaluate(final=final) if trainer.step in (2, 6, 10) else {"eval/loss": 1.0}
    trainer.fit()
    assert trainer.step == 10
    assert trainer.evaluations.early_stop.best_step == 2

    whole, _, _ = falling(metric_steps=(2, 6), early_stop_patience=2)
    whole.fit()
    parts, _, _ = falling(metric_steps=(2, 6), early_stop_patience=2, max_steps=4)
    parts.fit()
    assert parts.evaluations.early_stop.waited == 0  # the end of max_steps measured it where the whole run did not
    rest, _, _ = falling(metric_steps=(2, 6), early_stop_patience=2)
    rest.load(*stored(parts))
    rest.fit()
    assert rest.evaluations.early_stop.state_dict() == whole.evaluations.early_stop.state_dict()


def test_a_signal_in_the_final_evaluation_leaves_just_that() -> None:
    trainer, _, saves = falling(early_stop_patience=1, final_like_others=False)
    evaluate = trainer.task.evaluate

    def interrupted(*, final: bool) -> dict:
        if final:
            raise Interrupted("now")
        return evaluate(final=final)

    trainer.task.evaluate = interrupted
    with pytest.raises(Interrupted):
        trainer.fit()
    assert saves[-1] == (4, "signal")
    state = trainer.state_dict()["trainer"]
    again, more, saves = falling(early_stop_patience=1, final_like_others=False)
    again.step, again.evaluations.step, again.evaluations.final_step = (
        state[k] for k in ("step", "evaluated_step", "final_step")
    )
    again.evaluations.early_stop.load_state_dict(state["early_stop"])
    again.fit()
    assert again.step == 4
    assert [sorted(values) for _, values in more] == [["eval/w"]]
    assert saves == [(4, "last")]
    finished, nothing, saves = falling(early_stop_patience=1, final_like_others=False)
    finished.step, finished.evaluations.step, finished.evaluations.final_step = (
        4,
        again.evaluations.step,
        again.evaluations.final_step,
    )
    finished.evaluations.early_stop.load_state_dict(again.evaluations.early_stop.state_dict())
    finished.fit()
    assert finished.step == 4
    assert not nothing
    assert not saves


def test_patience_without_evaluations_is_refused() -> None:
    trainer, _, _ = make(4)
    with pytest.raises(UsageError, match="eval_interval"):
        check_early_stop(RunConfig(early_stop_patience=1), trainer.plan)
    check_early_stop(RunConfig(), trainer.plan)


def test_a_resumed_run_stops_where_the_whole_one_does(workplace: Path) -> None:
    stop = ("early_stop_patience=3", "early_stop_min_delta=2")  # nothing is ever better by 2
    whole, parts = workplace / "checkpoints/p/whole", workplace / "checkpoints/p/parts"
    result = run_script("pretrain", *RUN, *stop, "run_name=whole", cwd=workplace)
    assert result.code == 0, result.output
    assert "stopped early: 3 evaluations without a better eval/exact_accuracy" in result.output
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["stopped_early"] is True
    assert summary["step"] == 32  # the first of 4 evaluations, 8 steps apart, is the one to beat
    assert summary["best"]["step"] in (8, 16, 24, 32)
    assert status_of(whole)["state"] == "done"

    for steps in (24, 400):  # 24 is an evaluation: it must be counted once, not twice
        argv = [*RUN, *stop, "run_name=parts", f"max_steps={steps}", *(["resume=true"] if steps > 24 else [])]
        result = run_script("pretrain", *argv, cwd=workplace)
        assert result.code == 0, result.output
    assert json.loads((parts / "summary.json").read_text())["step"] == 32
    ours, theirs = final(parts), final(whole)
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert metrics(parts)[-2:] == metrics(whole)[-2:]

    before = (parts / "metrics.jsonl").read_bytes()
    result = run_script("pretrain", *argv, cwd=workplace)
    assert result.code == 0, result.output
    assert (parts / "metrics.jsonl").read_bytes() == before
    result = run_script("pretrain", *argv, "early_stop_patience=5", cwd=workplace)  # with more patience it resumes
    assert json.loads((parts / "summary.json").read_text())["step"] == 48, result.output
