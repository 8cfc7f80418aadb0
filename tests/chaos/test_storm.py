"""Each kind of fault once on a run of seconds; and a product with a planted fault does not survive."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import engine.loop.trainer
from chaos.faults import SINGLE_PROCESS, Attempt, Fault, plan
from chaos.state import differences, state_of
from chaos.storm import Command, Report, Storm
from tests.chaos.commands import COMMANDS, begin
from tests.conftest import run_script

PRETRAIN = ["python", "pretrain.py", *COMMANDS["pretrain"].split(), "max_steps=8", "epochs=2"]
FAULTS = {  # and how often the command is started: once more after each end, twice where it is refused and offered
    "kill": (Fault("kill", 0.5, 12), 2),
    "stop": (Fault("stop", 0.3, 5, amount=0.05), 1),
    "cut": (Fault("damage", 0.8, 0, amount=0.5, file=0.5, cut=True), 3),
    "flipped": (Fault("damage", 0.8, 9, amount=0.3, file=0.3), 3),
    "disk at the end": (Fault("disk", 1.0, 0), 2),
    "disk of a step": (Fault("disk", 0.5, 0, cut=True), 1),
}
SLOW = ("flipped", "disk at the end", "disk of a step")


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Storm:
    """With the undisturbed run made."""
    folder = tmp_path_factory.mktemp("chaos")
    made = Storm(Command.of(PRETRAIN), folder, begin("pretrain", folder / "begin"))
    made.undisturbed()
    return made


def meet(storm: Storm, *faults: Fault) -> Report:
    (report,) = storm.run([Attempt(faults)])
    return report


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FAULTS])
def test_the_run_ends_as_if_nothing_had_been(storm: Storm, name: str) -> None:
    fault, launches = FAULTS[name]
    report = meet(storm, fault)
    assert report.problems == []
    assert report.struck == [True]
    assert report.launches == launches


def test_several_faults_in_a_row(storm: Storm) -> None:
    faults = Fault("kill", 0.0, 14), Fault("disk", 0.3, 0, amount=700.0), Fault("term", 0.4, 3)
    report = meet(storm, *faults, Fault("evaluation", 0.6, 3))
    assert report.problems == []
    assert report.struck == [True] * 4
    assert report.launches == 4


def test_killed_while_the_data_are_built(storm: Storm, tmp_path: Path) -> None:
    bare = Storm(storm.command, tmp_path)
    bare.reference, bare.steps, bare.expected = storm.reference, storm.steps, storm.expected
    report = meet(bare, Fault("data", 0.0, 9))
    assert report.problems == []
    assert report.struck == [True]
    assert report.launches == 2


def _no_optimizers(load: Callable) -> Callable:
    return lambda optimizers, state: None


def _no_window(load: Callable) -> Callable:
    return lambda self, state: None


@pytest.mark.parametrize(
    ("owner", "name", "plant", "shown"),
    [
        (engine.loop.trainer, "load_optimizers", _no_optimizers, "latest/model.safetensors: other bytes"),
        (engine.loop.trainer.MetricWindow, "load_state_dict", _no_window, "metrics.jsonl: "),
    ],
    ids=["optimizers are not restored", "the metric window is not restored"],
)
def test_a_planted_fault_is_seen(
    storm: Storm, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, plant: Callable, shown: str
) -> None:
    monkeypatch.setattr(owner, name, plant(getattr(owner, name)))
    report = meet(storm, Fault("term", 0.3, 0))  # at step 3 of 8, the first of a window of two
    assert report.struck == [True]
    assert any(shown in problem for problem in report.problems), report.problems


def test_a_leftover_a_lock_and_a_lost_file_are_seen(
    storm: Storm, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = tmp_path / "place"
    shutil.copytree(storm.reference, place, symlinks=True)
    assert differences(storm.expected, state_of(place), storm.reference, place) == []
    (place / "run/.x.json.tmp-1-2").write_text("")
    (place / "run/checkpoints/latest").write_text("step_6\n")
    (place / "run/metrics.csv").unlink()
    handle = os.open(place / "run/.lock", os.O_RDWR)
    request.addfinalizer(lambda: os.close(handle))
    fcntl.flock(handle, fcntl.LOCK_EX)
    problems = differences(storm.expected, state_of(place), storm.reference, place)
    parts = {line.partition(": ")[0] for line in problems} | {line.split(": ")[1] for line in problems}
    assert {"leftovers", "locks held", "names", "latest", "latest/model.safetensors", "metrics.csv"} <= parts


def test_the_script(tmp_path: Path, storm: Storm) -> None:
    words = ["--faults", "1", "--kinds", "stop", "--from", str(storm.begin), "--", *PRETRAIN]
    done = run_script("scripts/chaos", *words, cwd=tmp_path)
    assert done.code == 0, done.output
    assert "| all   | 1       | 1            | 0               |" in done.output
    result = json.loads((tmp_path / "chaos.json").read_text())
    assert result["command"][:2] == ["python", "pretrain.py"]
    assert result["kinds"] == {"stop": {"planned": 1, "struck": 1, "lost": 0}}
    assert [path.name for path in tmp_path.iterdir()] == ["chaos.json"]
    refused = run_script("scripts/chaos", "--", "python", "pretrain.py", "lr=x", cwd=tmp_path)
    assert refused.code == 2
    assert "error: without any fault the command ends with 2: error: " in refused.output
    missed = run_script(
        "scripts/chaos", "--faults", "1", "--", "python", "-m", "timeit", "-n1", "-r1", "pass", cwd=tmp_path
    )
    assert missed.code == 1
    assert "error: no fault occurred" in missed.output


@pytest.mark.slow
@pytest.mark.parametrize("script", ["pretrain", "pretrain_etrm", "train", "feedforward_train"])
def test_a_seeded_storm_leaves_no_trace(tmp_path: Path, script: str) -> None:
    beside = ["checkpoint_background=true"] if script == "train" else []  # saves in a thread
    command = Command.of(["python", f"{script}.py", *COMMANDS[script].split(), *beside])
    reports = list(Storm(command, tmp_path, begin(script, tmp_path / "begin")).run(plan(7, 8, SINGLE_PROCESS)))
    assert [problem for report in reports for problem in report.problems] == []
    assert sum(sum(report.struck) for report in reports) >= 6


@pytest.mark.slow
def test_one_of_two_ranks_is_killed(tmp_path: Path, storm: Storm) -> None:
    both = Storm(Command.of([*PRETRAIN, "global_batch_size=8"], ranks=2), tmp_path, storm.begin)
    for rank in (0, 1):
        report = meet(both, Fault("rank", 0.5, 0, rank), Fault("stop", 0.8, 0, 1 - rank, 0.05))
        assert report.problems == []
        assert report.struck == [True, True]


@pytest.mark.slow
def test_a_runner_and_a_job_are_killed(tmp_path: Path) -> None:
    words = ["python", "scripts/run_jobs.py", *COMMANDS["scripts/run_jobs"].split()]
    queue = Storm(Command.of(words), tmp_path, begin("scripts/run_jobs", tmp_path / "begin"))
    report = meet(queue, Fault("queue", 0.0, 12), Fault("queue", 0.5, 3, amount=1.0))
    assert report.problems == []
    assert report.struck == [True, True]
