"""The estimate agrees with the run that it foretells; the search for a batch size finds what an oracle allows."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tracemalloc
import types
from pathlib import Path

import pytest

from engine.errors import UsageError
from reports.cost import report
from reports.cost.batch_size import Trial, best, find_batch_size, read_size
from reports.cost.measure import _before, checkpoints_kept
from reports.cost.operations import Stage, stages, steps_within, training_flops
from scripts.estimate import parse
from tests.conftest import ROOT, Result, run_forked, run_script

TINY = ("--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu", "epochs=2", "verify=off")


def _estimate(argv: list[str]) -> None:
    import runpy

    sys.argv = [str(ROOT / "scripts/estimate.py"), *argv]
    runpy.run_path(sys.argv[0], run_name="__main__")


def estimate(folder: Path, *argv: str) -> Result:
    return run_forked(_estimate, list(argv), cwd=folder)


def test_only_an_estimate_is_replaced_by_one(tmp_path: Path) -> None:
    (other := tmp_path / "status.json").write_text('{"state": "done"}')
    for target, message in ((other, "is not a result of estimate.py"), (tmp_path, "is a folder: name a file in it")):
        with pytest.raises(UsageError, match=message):
            report.estimate(None, pytest.fail, argparse.Namespace(json=target), [], "cfg")


# --- the estimate -----------------------------------------------------------------------------------------------------


def test_it_foretells_the_run_and_writes_nothing_of_it(workplace: Path) -> None:
    argv = (*TINY, "max_steps=6", "checkpoint_interval=2", "keep_last=3", "arch.puzzle_emb_ndim=32")
    done = estimate(workplace, *argv, "--json", "e.json")
    assert done.code == 0, done.output
    assert sorted(path.name for path in workplace.iterdir()) == ["data", "e.json"]
    forecast = json.loads((workplace / "e.json").read_text())
    ran = run_script("pretrain", *argv, "run_name=r", cwd=workplace)
    assert ran.code == 0, ran.output
    assert all(f"{name} {count:,} (" in ran.output for name, count in forecast["parameters"].items()), ran.output
    assert "6 of 32 (max_steps)" in done.output
    assert (forecast["steps"], forecast["total_steps"], forecast["evaluations"]) == (6, 32, 1)
    stored = sorted((workplace / "checkpoints/pretrain/r/checkpoints").glob("step_*"))
    assert forecast["checkpoints_kept"] >= len(stored) == 3
    real = sum(path.stat().st_size for path in stored[-1].glob("*.safetensors"))
    assert real == pytest.approx(forecast["checkpoint_bytes"], rel=0.05)  # headers
    assert forecast["memory"]["gradients"] == 4 * forecast["parameters"]["trunk"]
    assert forecast["memory"]["process"] > forecast["memory"]["activations"] > 0


def test_a_resume_is_estimated_with_the_config_of_its_run(workplace: Path) -> None:
    ran = run_script("pretrain", *TINY, "max_steps=2", "arch.hidden_size=16", "run_name=r", cwd=workplace)
    assert ran.code == 0, ran.output
    resumed = ("device=cpu", "resume=true", "run_dir=checkpoints/pretrain/r", "--probe-steps", "1", "--json", "e.json")
    done = estimate(workplace, *resumed, "max_steps=5")
    assert done.code == 0, done.output
    forecast = json.loads((workplace / "e.json").read_text())
    assert (forecast["config"], forecast["batch_rows"]) == ("cfg_pretrain_sudoku_4x4", 4)
    assert (forecast["steps"], forecast["total_steps"]) == (5, 32)
    assert all(f"{name} {count:,} (" in ran.output for name, count in forecast["parameters"].items()), ran.output


@pytest.mark.slow
def test_sums_of_the_estimate(workplace: Path) -> None:
    done = estimate(workplace, *TINY, "--probe-steps", "3", "--json", "e.json")
    assert done.code == 0, done.output
    forecast = json.loads((workplace / "e.json").read_text())
    assert forecast["training_seconds"] == pytest.approx(forecast["step_seconds"] * forecast["steps"])
    assert forecast["seconds"] == pytest.approx(forecast["training_seconds"] + forecast["evaluation_seconds"])
    assert forecast["evaluation_examples"] == 8
    assert forecast["flops"] > forecast["flops_per_step"] * forecast["steps"]
    assert forecast["examples_per_s"] == pytest.approx(4 / forecast["step_seconds"])


SCHEDULE = "arch.cycles_schedule=[[0,1,1],[0.25,2,1],[0.5,2,2]]"


@pytest.mark.parametrize(("steps", "horizon"), [(32, 32), (7, 32), (17, 32), (10, 10), (1, 1), (9_000, 9_000), (3, 7)])
def test_stages_are_those_that_the_task_trains(steps: int, horizon: int) -> None:
    """Held against a walk through all steps, as the task takes them."""
    shares = (0.0, 0.3, 0.6, 0.7)
    model = types.SimpleNamespace(flops=None, stage_flops=lambda rows: [(at, rows + at) for at in shares])
    walked: dict[float, int] = {}
    for step in range(1, steps + 1):
        cost = 5 + max(at for at in shares if at <= (step - 1) / horizon)
        walked[cost] = walked.get(cost, 0) + 1
    made = stages(model, 5, steps=steps, horizon=horizon)
    assert {stage.flops: stage.steps for stage in made} == walked
    assert training_flops(stages(model, 5, steps=steps, horizon=horizon)) == pytest.approx(
        sum(cost * count for cost, count in walked.items())
    )


def test_models_without_stages_or_operations() -> None:
    counted = types.SimpleNamespace(flops=lambda rows: {"train": 2.0 * rows, "eval": 1.0})
    assert stages(counted, 4, steps=3, horizon=10**15) == [Stage(3, 8.0)]
    assert training_flops(stages(counted, 4, steps=3, horizon=9)) == 24
    assert stages(types.SimpleNamespace(), 4, steps=3, horizon=9) == [Stage(3, None)]
    assert training_flops(stages(types.SimpleNamespace(), 4, steps=3, horizon=9)) is None


def test_a_run_that_deepens_costs_what_its_stages_cost(workplace: Path) -> None:
    """32 steps: 8, 8 and 16 of them. In block calls a step: forward H (L + 1), backward 2 (L + 1)."""
    argv = (*TINY, "max_steps=32", "arch.H_cycles=2", "arch.L_cycles=2", "--probe-steps", "1", "--json", "e.json")
    forecasts = []
    for more in ((SCHEDULE,), ()):
        done = estimate(workplace, *argv, *more)
        assert done.code == 0, done.output
        forecasts.append(json.loads((workplace / "e.json").read_text()))
        assert ("8 x " in done.output) == bool(more)
    deepens, deep = forecasts
    calls = {1: (1 + 2) * 2, 2: (1 + 2) * 3, 3: (2 + 2) * 3}
    unit = deep["flops_per_step"] / calls[3]
    costs = [number * unit for number in calls.values()]
    assert [stage["steps"] for stage in deepens["stages"]] == [8, 8, 16]
    assert [stage["flops_per_step"] for stage in deepens["stages"]] == pytest.approx(costs)
    training = 8 * costs[0] + 8 * costs[1] + 16 * costs[2]
    assert deepens["flops_per_step_mean"] == pytest.approx(training / 32)
    evaluation = deep["flops"] - 32 * deep["flops_per_step"]
    assert deepens["flops"] == pytest.approx(training + evaluation)
    speed = costs[0] / deepens["step_seconds"]
    assert deepens["training_seconds"] == pytest.approx(training / speed)
    assert deepens["evaluation_seconds"] == pytest.approx(evaluation / speed)


def test_steps_within_a_budget_are_where_a_clock_ends_them() -> None:
    for parts in ([(4, 1.0), (3, 2.5), (2, 4.0)], [(10, 0.5)]):
        each = [seconds for steps, seconds in parts for _ in range(steps)] + [parts[-1][1]] * 100
        for tenths in range(-5, 400, 3):
            spent = itertools.accumulate(each)
            expected = next(step for step, seconds in enumerate(spent, 1) if seconds >= tenths / 10)
            assert steps_within(tenths / 10, parts) == expected, (parts, tenths)


def test_a_budget_of_seconds_ends_the_run_that_is_foretold(workplace: Path) -> None:
    argv = (*TINY, "max_steps=9", "eval_interval=1", "--probe-steps", "2", "--json", "e.json")
    done = estimate(workplace, *argv, "max_seconds=1e-6")  # less than the timed steps themselves take
    assert done.code == 0, done.output
    assert "steps       about 1, then max_seconds=1e-06 is up; 9 of 30 (max_steps) without it" in done.output
    assert "continue" not in done.output, "the budget ended what was measured"
    short = json.loads((workplace / "e.json").read_text())
    assert (short["steps"], short["budget_steps"], short["planned_steps"], short["timed_steps"]) == (1, 1, 9, 2)
    assert short["training_seconds"] == pytest.approx(short["step_seconds"])
    assert short["evaluations"] == 1

    done = estimate(workplace, *argv, "max_seconds=1e6")
    assert "steps       9 of 30 (max_steps), before max_seconds=1e+06 is up (about " in done.output
    long = json.loads((workplace / "e.json").read_text())
    assert long["steps"] == 9
    assert long["budget_steps"] == pytest.approx(1e6 / long["step_seconds"], abs=1)


def test_kept_checkpoints_against_a_replay() -> None:
    for keep_last, keep_every in ((1, None), (2, None), (2, 30), (9, 20)):
        saves = list(range(10, 101, 10))
        for best_step in saves:
            stay = {step for step in saves if step in saves[-keep_last:] or step == best_step}
            stay |= {step for step in saves if keep_every and step % keep_every == 0}
            assert len(stay) <= checkpoints_kept([saves], keep_last, keep_every) <= len(stay) + 1
    assert checkpoints_kept([[5]], 2, None) == 1
    assert checkpoints_kept([[5, 10], [10, 20], (20,)], 2, None) == 3


def test_steps_without_end_take_no_memory() -> None:
    """A hundred million evaluations and saves are counted, not listed."""
    assert _before(range(0, 10**12, 3), 10) == range(0, 10, 3)
    assert _before(frozenset((9, 3)), 9) == [3]
    tracemalloc.start()
    assert checkpoints_kept([range(1, 10**12), range(5, 10**12, 5), (10**12,)], 2, None) == 3
    assert checkpoints_kept([range(7, 10**12, 7), (), (10**12,)], 2, 10**9) == 2 + 142 + 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["lrr=3"], "did you mean 'lr'"),
        (["-m", "lr=1,2"], "estimate one of them"),
        (["--entry", "nothing"], "expected an entry script"),
        (["--", "lr=1"], "after -- give the whole command"),
        (["--probe-steps", "0"], "--probe-steps"),
        (["--config-name=cfg_pretain"], "did you mean 'cfg_pretrain'"),
        (["--find-batch-size", "--memory-limit", "lots", "device=cpu", *TINY], "--memory-limit lots"),
    ],
)
def test_unusable_commands_are_one_line(tmp_path: Path, argv: list[str], words: str) -> None:
    done = estimate(tmp_path, *argv)
    error = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert (done.code, len(error)) == (2, 1), done.output
    assert words in error[0]


def test_own_arguments_and_the_entry_scripts() -> None:
    args, rest = parse(["--find-batch-size", "--lr", "1e-3", "+debug=tiny", "--probe-steps", "2"])
    assert (args.find_batch_size, args.probe_steps, rest) == (True, 2, ["--lr", "1e-3", "+debug=tiny"])
    with pytest.raises(SystemExit):
        parse(["cfg_pretrain_sudoku_4x4", "--probe-steps", "2"])
    args, rest = parse(["--probe-steps", "2", "--", "python", "train.py", "--lr", "1e-3"])
    assert (args.entry, args.probe_steps, rest) == ("train.py", 2, ["--lr", "1e-3"])


# --- the batch size ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "step", "room"), [(16, 1, 100), (64, 8, 40), (8, 4, 8), (4, 4, 1000), (128, 1, 3)])
def test_the_search_comes_near_the_largest_batch_that_fits(start: int, step: int, room: int) -> None:
    seen: list[int] = []

    def measure(rows: int) -> Trial:
        seen.append(rows)
        return Trial(rows=rows, reason="out of memory") if rows > room else Trial(rows=rows, examples_per_s=float(rows))

    trials = find_batch_size(start, step, measure)
    assert [trial.rows for trial in trials] == sorted(set(seen))
    assert len(seen) == len(set(seen)), "a size was measured twice"
    assert all(rows % step == 0 for rows in seen)
    largest = max(trial.rows for trial in trials if not trial.reason)
    assert room - max(step, largest // 8) <= largest <= room
    assert best(trials) == next(trial for trial in trials if trial.rows == largest)


def test_the_search_ends_when_a_larger_batch_is_no_faster_and_names_the_smallest_good_one() -> None:
    trials = find_batch_size(2, 2, lambda rows: Trial(rows=rows, examples_per_s=min(rows, 16.0) - 0.01 * rows))
    assert [trial.rows for trial in trials] == [2, 4, 8, 16, 32, 64, 128]
    chosen = best(trials)
    assert chosen is not None
    assert chosen.rows == 16


def test_nothing_fits() -> None:
    trials = find_batch_size(8, 2, lambda rows: Trial(rows=rows, reason="out of memory"))
    assert [trial.rows for trial in trials] == [2, 4, 8]
    assert best(trials) is None


def test_sizes() -> None:
    assert [read_size(text) for text in ("8GiB", "500MB", "2G", "67108864")] == [
        8 * 2**30,
        500 * 10**6,
        2 * 10**9,
        2**26,
    ]
    for unreadable in ("inf", "1e400GB", "8 parsec", "", "1KiB", "-8GiB"):
        with pytest.raises(UsageError, match="--memory-limit"):
            read_size(unreadable)


@pytest.mark.slow
def test_find_batch_size_as_a_command(workplace: Path) -> None:
    """In its own process: the limit counts memory that a fork has from this one. 128 rows need 0.9 GB beside torch."""
    script = "import torch; print(open('/proc/self/status').read().partition('VmData:')[2].split()[0])"
    torchs = 1024 * int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    command = [sys.executable, str(ROOT / "scripts/estimate.py"), *TINY, "arch.hidden_size=512"]

    def search(limit: int) -> subprocess.CompletedProcess[str]:
        own = ["--find-batch-size", "--memory-limit", str(limit), "--probe-seconds", "1", "--json", "e.json"]
        return subprocess.run(
            [*command, *own, "global_batch_size=128"], cwd=workplace, capture_output=True, text=True, check=False
        )

    for room, refusal in ((10_000_000, "torch and a run's imports need"), (90_000_000, "too little to build this run")):
        done = search(torchs + room)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert refusal in done.stderr
    done = search(torchs + 620_000_000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lower global_batch_size (now 128)" in done.stdout
    assert "looking for a batch that fits" in done.stdout
    trials = json.loads((workplace / "e.json").read_text())["trials"]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("best: global_batch_size=")]
    usable = [trial["rows"] for trial in trials if not trial["reason"]]
    assert int(line.split("=")[1].split()[0]) in usable
    assert trials[-1] == {"rows": 128, "examples_per_s": None, "memory": None, "reason": "out of memory"}
