"""The line on time and memory of a step: from the loop's own clock, once, of the mode that runs."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch

from engine.loop.speed import FEWEST, STEPS, WARM_UP, StepSpeed, duration, enough, size, step_text
from tests.conftest import run_ranks, run_script
from tests.engine.test_trainer import make

TINY = ("--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu", "verify=off", "max_steps=12")


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("engine.loop.speed.print_rank0", lines.append)
    return lines


def watched(seconds: list[float], *, graph: object = None, compiled: str | None = None) -> None:
    """StepSpeed in a loop whose steps take `seconds`."""
    hook = StepSpeed()
    task = types.SimpleNamespace() if compiled is None else types.SimpleNamespace(compiled=compiled)
    device = types.SimpleNamespace(device=torch.device("cpu"))
    trainer = types.SimpleNamespace(graph=graph, task=task, runtime=device, seconds=100.0)  # of earlier processes
    hook.start(trainer)  # type: ignore[arg-type]
    for took in seconds:
        hook.after_step(trainer)  # type: ignore[arg-type]
        trainer.seconds += took


def test_the_median_of_the_steps_after_the_warm_up(printed: list[str]) -> None:
    steps = [50.0, *[0.25] * 3, 9.0, *[0.5] * 4, 7.0, 7.0, 7.0]
    watched(steps[: WARM_UP + STEPS])
    assert printed == []  # the time of the last one is not known yet
    watched(steps)
    (line,) = printed
    assert line.startswith("speed       500.0 ms a step (8 timed, compile=off, step_graph=off), peak ")
    assert line.endswith(" of the process, Python and torch included")


def test_long_steps_are_not_waited_for(printed: list[str]) -> None:
    watched([30.0] * (WARM_UP + FEWEST))
    assert printed == []
    watched([30.0] * 9)
    assert printed[0].startswith("speed       30.0 s a step (2 timed,")


def test_the_mode_is_the_one_that_runs(printed: list[str]) -> None:
    for graph, state in ((types.SimpleNamespace(works=True), "on"), (types.SimpleNamespace(works=False), "off")):
        watched([60.0, 1.0, 1.0, 20.0, *[0.5] * 12], graph=graph, compiled="block")
        assert printed.pop().startswith(f"speed       500.0 ms a step (8 timed, compile=block, step_graph={state})")


def test_no_more_steps_are_timed_than_asked_for() -> None:
    assert [enough(timed, 1.0, steps=3) for timed in (0, 2, 3, 4)] == [False, False, True, True]
    assert [enough(timed, 21.0) for timed in (0, 1, 2, 7)] == [False, False, True, True]


def test_words() -> None:
    assert [size(count) for count in (5, 2048, 3.5 * 2**20, 2**31)] == ["5 B", "2.0 KiB", "3.5 MiB", "2.00 GiB"]
    assert [duration(s) for s in (0.032, 5, 600, 7200)] == ["32.0 ms", "5.0 s", "10.0 min", "2.0 h"]
    assert step_text(2.0, 5, "full", captured=True) == "2.0 s a step (5 timed, compile=full, step_graph=on)"


def test_the_loop_of_a_trainer(printed: list[str]) -> None:
    trainer, _, _ = make(12)
    trainer.hooks.append(StepSpeed())
    trainer.fit()
    assert len(printed) == 1
    assert "(8 timed, compile=off, step_graph=off), peak " in printed[0]


def test_a_run_has_one_such_line_and_a_short_one_none(workplace: Path) -> None:
    done = run_script("pretrain", *TINY, "run_name=r", cwd=workplace)
    assert done.code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("speed  ")]
    assert " a step (8 timed, compile=off, step_graph=off), peak " in line
    done = run_script("pretrain", *TINY, "run_name=s", "max_steps=3", cwd=workplace)
    assert "speed  " not in done.output


@pytest.mark.slow
def test_only_rank_0_prints_it(workplace: Path) -> None:
    ranks = run_ranks("pretrain", *TINY, cwd=workplace)
    assert [result.output.count("\nspeed  ") for result in ranks] == [1, 0]
