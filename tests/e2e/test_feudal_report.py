"""scripts/feudal_report.py on real, tiny runs: what exchanged and missing goals do; and the job file of the ablation."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from launcher.jobs import read
from tasks.recursive_reasoning.feudal_report.goals import SOURCES, AnswerTally
from tests.conftest import ROOT, Result, run_script
from tests.e2e.recipes import PRETRAIN
from verification.static import verify_file

TINY = (
    "--config-name=cfg_pretrain_sudoku_6x6_feudal",
    "+debug=tiny",
    "device=cpu",
    "global_batch_size=8",
    "arch.halt_max_steps=4",
    "arch.subgoal_head.manager_period=2",
    "lr=0.01",
    "lr_warmup_steps=0",
    "project_name=p",
)
BASELINE = tuple(word for word in TINY if "subgoal_head" not in word)


def train(home: Path, *argv: str) -> None:
    done = run_script("pretrain", *argv, cwd=home)
    assert done.code == 0, done.output


def report(home: Path, *argv: str) -> tuple[Result, dict]:
    shown = run_script("scripts/feudal_report", "checkpoints/p", "--device", "cpu", *argv, cwd=home)
    assert shown.code == 0, shown.output
    return shown, json.loads((home / "feudal_report/report.json").read_text())["cells"]


def test_an_untrained_manager_changes_nothing_whatever_its_goals(workplace: Path) -> None:
    train(workplace, *TINY, "max_steps=1", "run_name=fresh")  # in the first step no row has a goal: V_L is still zero
    _, cells = report(workplace)
    goals = cells["feudal"]["goals"]
    scores = [goals["scores"][source]["mean"] for source in SOURCES]
    assert scores == [scores[0]] * len(SOURCES)
    assert goals["content"]["mean"] == goals["presence"]["mean"] == 0
    assert not any(goals["changed"].values())
    assert goals["word"] == "not followed"


def test_goals_that_reach_the_worker_change_answers_and_are_measured_once(workplace: Path) -> None:
    pushed = ("arch.subgoal_head.inject_init=normal", "arch.subgoal_head.goal_scale=4", "max_steps=4")
    for seed in (0, 1):
        train(workplace, *TINY, *pushed, f"seed={seed}", f"run_name=a{seed}")
    train(workplace, *BASELINE, "~arch.subgoal_head", "max_steps=4", "run_name=plain")
    shown, cells = report(workplace)
    assert cells["baseline"]["goals"] is None
    goals = cells["feudal"]["goals"]
    assert goals["changed"]["zero"] > 0
    assert goals["changed"]["same"] == 0
    run = workplace / "checkpoints/p/a0"
    summary = json.loads((run / "summary.json").read_text())["results"]
    (file,) = run.glob("feudal_goals_step_4.json")
    stored = json.loads(file.read_text())
    same, zero = stored["sources"]["same"], stored["sources"]["zero"]
    for name in ("exact_accuracy", "accuracy", "lm_loss", "feudal_cos", "subgoal_gate_mean"):
        assert same[name] == pytest.approx(summary[f"eval/{name}"], rel=1e-6)
    assert zero["drop"]["accuracy"][0] == pytest.approx(same["accuracy"] - zero["accuracy"], abs=1e-6)
    assert "baseline has no run of seed 1" in shown.output

    before = os.stat(file).st_mtime_ns
    again, cells_again = report(workplace)
    assert cells_again == cells
    assert os.stat(file).st_mtime_ns == before
    others = copy.deepcopy(stored)
    others["key"]["sha256"] = "of other weights"
    others["sources"]["zero"]["accuracy"] = -1.0
    file.write_text(json.dumps(others))
    report(workplace)
    assert json.loads(file.read_text()) == stored  # measured again
    for picture in ("cells.png", "goals.png"):
        assert (workplace / "feudal_report" / picture).is_file()
    assert "Are goals followed?" in again.output


def test_participation_counts_directions() -> None:
    """Against the eigenvalues of the covariance of all goals, over batches of different size."""
    rng = np.random.Generator(np.random.Philox(1))
    goals = torch.tensor(rng.normal(size=(12, 5)) * [3.0, 1.0, 1.0, 0.1, 0.0])
    active = torch.tensor([True] * 10 + [False] * 2)
    tally = AnswerTally()
    tally.begin()
    for rows, valid in ((slice(0, 5), 5), (slice(5, 12), 6)):  # the last row is padding
        carry = type("Carry", (), {"latents": {"subgoal_goal": goals[rows], "subgoal_active": active[rows]}})()
        labels = torch.tensor([[1, -100, 2]] * (rows.stop - rows.start))
        preds = torch.tensor([[1, 9, 2], [1, 9, 3]] * 4)[: len(labels)]
        tally.update({"labels": labels}, [type("Step", (), {"carry": carry})()], preds, valid)
    values = np.linalg.eigvalsh(np.cov(goals[:10].numpy().T))
    assert tally.participation() == pytest.approx(values.sum() ** 2 / (values**2).sum())
    units = torch.nn.functional.normalize(goals[:10], dim=1)
    assert tally.alike() == pytest.approx(float((units @ units.T).fill_diagonal_(0).sum()) / 90)
    exact = np.concatenate(tally.scores["exact_accuracy"])
    assert exact.tolist() == [1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0]
    assert np.concatenate(tally.scores["accuracy"])[1] == 0.5


JOBS = ROOT / "jobs/jobs-feudal.txt"


def test_the_job_file_has_the_ablation_and_the_sweeps_of_the_guide() -> None:
    jobs = {job.id: job for job in read(JOBS).jobs}
    for cell in ("baseline", "feudal", "no_loss", "no_injection", "random_goals"):
        assert [job.value("seed") for job in (jobs[f"{cell}_{seed}"] for seed in range(5))] == list("01234")
    assert {f"feudal_weight_{w}" for w in ("0.01", "0.05", "0.1", "0.2", "0.5")} <= jobs.keys()
    assert {f"period_{p}" for p in (1, 2, 4, 8)} <= jobs.keys()
    assert all(job.state == "todo" and job.intent for job in jobs.values())
    first = {name: job for name, job in jobs.items() if name.endswith("_0")}
    made = {name: PRETRAIN.compose(recipe_of(job), *words_of(job)).arch for name, job in first.items()}
    assert made["baseline_0"].get("subgoal_head") is None
    assert made["no_loss_0"]["loss"]["feudal_loss_weight"] == 0
    assert made["no_injection_0"]["subgoal_head"]["inject_subgoal"] is False
    assert made["random_goals_0"]["subgoal_head"]["goal_source"] == "random"
    assert made["feudal_0"]["loss"]["feudal_loss_weight"] == 0.1


def words_of(job) -> list[str]:
    return [word for word in job.argv[2:] if not word.startswith("--config-name")]


def recipe_of(job) -> str:
    return next(word.partition("=")[2] for word in job.argv if word.startswith("--config-name"))


@pytest.mark.slow
def test_every_job_of_the_file_may_start() -> None:
    """verify=strict stops at a FAIL; what is odd on purpose (no head, goals that nobody is told) is only said."""
    for made in verify_file(JOBS, root=ROOT, local_data=False, probes=False):
        assert not made.of("FAIL"), [(made.job, finding.message) for finding in made.of("FAIL")]
        assert {finding.code for finding in made.of("WARN")} <= {"ARC340"}, made.job
