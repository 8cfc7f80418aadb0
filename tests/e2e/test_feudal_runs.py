"""Runs of HRM with a manager: what they report and warn of, the head on and off, resumes, ranks, checkpoints."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, metrics, run_ranks, run_script
from tests.e2e.test_resume import interrupt
from verification.static import verify_command

TINY = (
    "device=cpu",
    "+debug=tiny",
    "max_steps=8",
    "global_batch_size=8",
    "arch.H_layers=1",
    "arch.H_cycles=1",
    "arch.halt_max_steps=4",
    "arch.subgoal_head.manager_period=2",
    "lr_warmup_steps=2",
    "lr=0.001",
    "project_name=p",
)
DOUBLE = (*TINY, "arch.forward_dtype=float64", "arch.subgoal_head.inject_init=normal")
PLAIN = tuple(word for word in TINY if "subgoal_head" not in word)


def go(workplace: Path, *argv: str, run: str = "r", code: int = 0):
    result = run_script("pretrain", *argv, f"run_name={run}", cwd=workplace)
    assert result.code == code, result.output
    return result, workplace / "checkpoints/p" / run


def same_weights(ours: Path, theirs: Path, tolerance: float) -> None:
    """Runs without an average of the weights: only model.safetensors is compared."""
    a, b = (load_file(next(run.glob("checkpoints/step_*")) / "model.safetensors") for run in (ours, theirs))
    assert a.keys() == b.keys()
    worst = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
    assert worst <= tolerance, f"weights differ by {worst}"


def test_the_metrics_of_a_run_add_up_and_are_on_the_console(workplace: Path) -> None:
    result, run = go(workplace, *TINY, "stats_interval=1", "loss.feudal_loss_weight=0.15")
    for name in ("loss", "lm_loss", "feudal_loss", "accuracy", "steps"):
        assert f"train/{name} " in result.output
    lines = [line for line in metrics(run) if "train/loss" in line]
    assert len({tuple(line) for line in lines}) == 1
    for line in lines:
        q = line["train/q_halt_loss"] + line["train/q_continue_loss"]
        total = line["train/lm_loss"] + 0.5 * q + 0.15 * line["train/feudal_loss"]
        assert line["train/loss"] == pytest.approx(total, abs=1e-6)
    assert 0 < lines[-1]["train/feudal_loss"] < 2
    assert lines[1]["train/grad_norm_inject_L"] > 0  # the first consuming pass
    assert lines[0]["train/grad_norm_inject_L"] == 0
    assert lines[-1]["train/grad_norm_goal_proj"] > 0
    last = metrics(run)[-1]
    assert {"eval/feudal_loss", "eval/feudal_cos", "eval/feudal_cos_own", "eval/subgoal_gate_mean"} <= last.keys()


@pytest.mark.slow
def test_the_root_weight_changes_what_is_learned_and_the_same_seed_repeats_it(workplace: Path) -> None:
    runs = [
        go(workplace, *DOUBLE, *more, run=f"w{n}")[1]
        for n, more in enumerate(
            ((), (), ("loss.feudal_loss_weight=0.5",), ("arch.loss.feudal_loss_weight=0.5",), ("seed=1",))
        )
    ]
    lines = [metrics(run) for run in runs]
    assert lines[0] == lines[1]
    assert lines[2] == lines[3]
    assert lines[0] != lines[2]
    assert lines[0] != lines[4]


@pytest.mark.parametrize("word", ["~arch.subgoal_head", pytest.param("arch.subgoal_head=null", marks=pytest.mark.slow)])
def test_without_a_head_a_run_is_plain_hrm(workplace: Path, word: str) -> None:
    _, run = go(workplace, *PLAIN, word)
    _, plain = go(workplace, *PLAIN, "arch=hrm", run="plain")
    assert metrics(run) == metrics(plain)
    same_weights(run, plain, 0.0)
    assert not any("feudal" in key or "subgoal" in key for line in metrics(run) for key in line)


WARNED = {
    "~arch.subgoal_head": "feudal_loss_weight=0.1 without arch.subgoal_head: the feudal loss will not be computed",
    "arch.subgoal_head.goal_dim=513": "goal_dim=513 > hidden_size=512: works",
    "arch.subgoal_head.manager_period=15": "manager_period=15 with halt_max_steps=16: one goal for the whole episode",
    "arch.halt_max_steps=1": "halt_max_steps=1: a goal comes after the first pass and is never used",
    "loss.feudal_loss_weight=0.2": "feudal_loss_weight=0.2: every published sweep found harm",
    "loss.feudal_loss_weight=0.05 arch.loss.feudal_loss_weight=0.02": "arch.loss.feudal_loss_weight is given too, and wins",
    "arch.subgoal_head.schedule=[16]": "schedule=[16] with halt_max_steps=16: no goal is ever used",
    "arch.subgoal_head.inject_subgoal=false": "inject_subgoal=false with feudal_loss_weight=0.1",
    "max_steps=10": "the learning rate never reaches its peak",
}


@pytest.mark.parametrize("words", WARNED)
def test_what_is_odd_is_said(words: str) -> None:
    report = verify_command(["python", "pretrain.py", "device=cpu", *words.split()], root=ROOT, probes=False)
    assert [f for f in report.of("WARN") if WARNED[words] in f.message], [f.message for f in report.of("WARN")]


@pytest.mark.parametrize(
    "words",
    [
        "",
        pytest.param("loss.feudal_loss_weight=0.05", marks=pytest.mark.slow),
        pytest.param("arch.subgoal_head.gating=false", marks=pytest.mark.slow),
        pytest.param("arch=hrm", marks=pytest.mark.slow),
    ],
)
def test_what_is_usual_is_not(words: str) -> None:
    report = verify_command(["python", "pretrain.py", "device=cpu", *words.split()], root=ROOT)
    assert not report.of("WARN") + report.of("FAIL")


def test_a_key_that_no_recipe_has_is_refused(workplace: Path) -> None:
    result = run_script("pretrain", *TINY, "loss.feudal_los_weight=0.2", cwd=workplace)
    assert result.code == 2
    assert "loss.feudal_loss_weight" in result.output


def test_a_killed_run_goes_on_bit_for_bit(workplace: Path) -> None:
    """In the middle of windows: goals, anchors and remembered worker states are part of a checkpoint."""
    more = ("arch.subgoal_head.goal_source=random", "arch.subgoal_head.displacement=fun", "final_eval=false")
    argv = (*DOUBLE, *more, "max_steps=12", "epochs=4", "checkpoint_interval=3")
    _, whole = go(workplace, *argv, run="whole")
    code, output = interrupt(workplace, signal.SIGKILL, 5, (*argv, "run_name=r"))
    assert code == -signal.SIGKILL, output
    result, run = go(workplace, *argv)
    assert "resuming from" in result.output
    assert metrics(run) == metrics(whole)
    for name in ("model", "state"):
        a, b = (load_file(folder / f"step_12/{name}.safetensors") for folder in (run, whole))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


@pytest.mark.parametrize(
    ("source", "parallel"),
    [
        ("random", "flat"),
        pytest.param("learned", "flat", marks=pytest.mark.slow),
        pytest.param("learned", "ddp", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_are_one_process(workplace: Path, source: str, parallel: str) -> None:
    argv = [*DOUBLE, f"arch.subgoal_head.goal_source={source}", "arch.subgoal_head.goal_dim=8", "final_eval=false"]
    _, alone = go(workplace, *argv, "accumulation=2", run="alone")
    for result in run_ranks("pretrain", *argv, f"parallel={parallel}", "run_name=r", cwd=workplace):
        assert result.code == 0, result.output
    same_weights(alone, workplace / "checkpoints/p/r", 1e-9)


@pytest.mark.slow
def test_ddp_copes_with_a_head_that_gets_no_gradient(workplace: Path) -> None:
    argv = [*DOUBLE, "arch.subgoal_head.inject_subgoal=false", "final_eval=false"]
    _, alone = go(workplace, *argv, "accumulation=2", run="alone")
    for result in run_ranks("pretrain", *argv, "parallel=ddp", "run_name=r", cwd=workplace):
        assert result.code == 0, result.output
    same_weights(alone, workplace / "checkpoints/p/r", 1e-9)


def test_a_checkpoint_loads_only_into_its_own_head(workplace: Path) -> None:
    from engine.errors import UsageError
    from engine.run.load_run import open_checkpoint

    data = {"data_paths": [str(workplace / "data/debug-sudoku-4x4")]}
    _, run = go(workplace, *TINY, "max_steps=2")
    _, plain = go(workplace, *PLAIN, "~arch.subgoal_head", "max_steps=2", run="plain")
    arch = open_checkpoint(run, device="cpu", overrides=data).checkpoint.config["arch"]
    head = arch["subgoal_head"]
    for folder, block, words in (
        (run, None, "arch.subgoal_head: a block of keys in the checkpoint, null now"),
        (plain, head, "arch.subgoal_head: not set in the checkpoint, a block of keys now"),
        (run, {**head, "gating": False}, "arch.subgoal_head.gating: true in the checkpoint, false now"),
        (run, {**head, "goal_dim": 8}, "arch.subgoal_head.goal_dim: 32 in the checkpoint, 8 now"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            open_checkpoint(folder, device="cpu", overrides={**data, "arch": {**arch, "subgoal_head": block}})
