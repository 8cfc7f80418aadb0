"""The run directory: which one a launch uses, what it refuses, what it writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.checkpoint.store import CheckpointStore
from engine.errors import UsageError
from engine.run import directory
from engine.run.decision import resolve_run
from engine.run.directory import RunDirectory, open_run
from engine.run.request import RunRequest, run_dir
from tests.conftest import status_of

ROOT = Path(__file__).resolve().parents[2]
ONE = {"lr": 0.1, "arch": {"depth": 2}}
TWO = {"lr": 0.2, "arch": {"depth": 3}}
NOW = "${now:%H-%M-%S}"


def opened(path: Path, identity=ONE, **options) -> RunDirectory:
    return open_run(RunRequest(path, identity, options.pop("entry", "pretrain"), **options))


def checkpoint(run: RunDirectory, step: int) -> Path:
    store = CheckpointStore(run.path, "pretrain")
    return store.save(step, model={"w": torch.zeros(2)}, state={}, config={}, metric=None)


def lived(path: Path, *steps: int, state: str = "interrupted", identity=ONE, **options) -> Path:
    """A run that wrote checkpoints and ended in `state`."""
    run = opened(path, identity, **options)
    for step in steps:
        checkpoint(run, step)
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
    run.set_status(state)
    run.close()
    return run.path


# --- auto


def test_new_run(tmp_path, capsys):
    run = opened(tmp_path / "a" / "run")
    assert (run.decision.action, run.decision.checkpoint, run.path) == ("new", None, tmp_path / "a" / "run")
    assert capsys.readouterr().out == run.message + "\n" == f"{run.path}: new run\n"
    assert status_of(run.path)["state"] == "running"
    assert status_of(run.path)["pid"] == os.getpid()
    identity = json.loads((run.path / "identity.json").read_text())
    assert identity["config"] == ONE
    assert identity["entry"] == "pretrain"


@pytest.mark.parametrize("state", ["running", "interrupted", "failed", "refused"])
def test_auto_goes_on_with_an_unfinished_run(tmp_path, state):
    path = lived(tmp_path / "run", 5, 10, state=state)
    run = opened(path)
    assert run.decision.action == "resume"
    assert run.decision.checkpoint == path / "checkpoints" / "step_10"
    assert "resuming from step_10" in run.message
    assert status_of(path)["state"] == "running"
    assert status_of(path)["step"] == 10
    assert (path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_auto_goes_on_when_the_status_is_lost(tmp_path, text):
    path = lived(tmp_path / "run", 5)
    (path / "status.json").unlink()
    if text is not None:
        (path / "status.json").write_text(text)
    assert opened(path).decision.action == "resume"


def test_a_way_that_leads_up_again_is_another_name_of_the_same_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lived(tmp_path / "out/a", 5, state="done")
    place = run_dir(SimpleNamespace(run_dir="out/a/../a", project_name=None, run_name=None))
    assert opened(place).path == tmp_path / "out/a"  # `out/a/..` is gone once `a` is set aside
    assert (tmp_path / "out/a.1/identity.json").exists()


def test_auto_sets_a_finished_run_aside(tmp_path, capsys):
    path = lived(tmp_path / "run", 5, state="done")
    old = (path / "checkpoints/step_5/manifest.json").read_bytes()
    run = opened(path)
    assert (run.decision.action, run.decision.checkpoint) == ("set_aside", None)
    assert "run was in the way (a finished run) and is now run.1" in capsys.readouterr().out
    assert (tmp_path / "run.1/checkpoints/step_5/manifest.json").read_bytes() == old
    assert status_of(tmp_path / "run.1")["state"] == "done"
    assert not (path / "checkpoints").exists()
    run.set_status("done")
    run.close()
    assert "is now run.2" in opened(path).message
    assert (tmp_path / "run.1/checkpoints/step_5").is_dir()


@pytest.mark.parametrize("state", ["interrupted", "done"])
def test_auto_sets_a_foreign_run_aside_and_says_what_differs(tmp_path, state):
    path = lived(tmp_path / "run", 5, state=state)
    run = opened(path, TWO)
    assert run.decision.action == "set_aside"
    assert "another run: lr 0.1 -> 0.2, arch.depth 2 -> 3" in run.message
    assert (tmp_path / "run.1/checkpoints/step_5").is_dir()
    run.close()
    again = opened(path, entry="train", identity=TWO)
    assert "entry pretrain" in again.message
    assert (tmp_path / "run.2/identity.json").is_file()


def test_something_that_is_no_run_is_refused_and_untouched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("dear")
    with pytest.raises(UsageError, match="is not empty and not a run"):
        opened(tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", [[], [".lock"], [".hydra", "status.json", "path_signature.json"]])
def test_what_a_launcher_left_is_not_in_the_way(tmp_path, content):
    (tmp_path / "run").mkdir()
    for name in content:
        (tmp_path / "run" / name).touch()
    assert opened(tmp_path / "run").message == f"{tmp_path / 'run'}: new run"
    assert not (tmp_path / "run.1").exists()


def test_auto_starts_over_in_place_without_a_checkpoint(tmp_path):
    path = lived(tmp_path / "run", state="running")
    (path / "metrics.csv").write_text("step\n1\n")
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / ".step_5.tmp-1-0").mkdir()
    run = opened(path)
    assert (run.decision.action, run.decision.checkpoint, run.path) == ("restart", None, path)
    assert "starting again from step 0" in run.message
    assert (path / "metrics.jsonl").read_bytes() == b""
    assert (path / "metrics.csv").read_bytes() == b""
    assert list((path / "checkpoints").iterdir()) == []
    assert not (tmp_path / "run.1").exists()


# --- true, false


@pytest.mark.parametrize("state", ["interrupted", "done"])
def test_true_goes_on_finished_or_not(tmp_path, state):
    path = lived(tmp_path / "run", 5, state=state)
    run = opened(path, resume="true")
    assert (run.decision.action, run.decision.checkpoint) == ("resume", path / "checkpoints" / "step_5")
    assert status_of(path)["state"] == "running"


def test_a_resume_counts_the_seconds_of_its_checkpoint_and_no_other_launch_does(tmp_path):
    run = opened(tmp_path / "run")
    assert run.decision.spent == 0
    parts = {"model": {"w": torch.zeros(2)}, "state": {}, "config": {}, "metric": None}
    store = CheckpointStore(run.path, "pretrain")
    store.save(5, **parts)  # of a version that kept no seconds
    store.save(8, **parts, extra={"spent": {"seconds": 90.5, "cpu_seconds": 80.0}})
    run.close()
    for spec, seconds in (("step_5", 0), ("latest", 90.5)):
        run = opened(run.path, resume="true", resume_from=spec)
        assert run.decision.spent == seconds
        run.close()
    assert opened(tmp_path / "branch", resume_from=str(run.path / "checkpoints/step_8")).decision.spent == 0


def test_true_needs_a_checkpoint_and_names_the_folder(tmp_path):
    with pytest.raises(UsageError, match=f"nothing to resume: no checkpoint in {tmp_path / 'run' / 'checkpoints'}"):
        opened(tmp_path / "run", resume="true")
    assert not (tmp_path / "run").exists()
    path = lived(tmp_path / "run")
    with pytest.raises(UsageError, match="nothing to resume"):
        opened(path, resume="true")


def test_true_says_changes_and_keeps_them_once_the_state_is_loaded(tmp_path):
    path = lived(tmp_path / "run", 5, state="done")
    run = opened(path, TWO, resume="true")
    assert "resuming from step_5 with changes: lr 0.1 -> 0.2, arch.depth 2 -> 3" in run.message
    assert json.loads((path / "identity.json").read_text())["config"] == ONE
    run.write_config("lr: 0.2\n", TWO)
    run.close()
    assert opened(path, TWO).decision.action == "resume"
    with pytest.raises(UsageError, match=r"run of pretrain\.py, not of train\.py"):
        opened(path, TWO, resume="true", entry="train")


def test_false_never_goes_on(tmp_path):
    path = lived(tmp_path / "run", 5)
    run = opened(path, resume="false")
    assert (run.decision.action, run.decision.checkpoint) == ("set_aside", None)
    assert "an unfinished run of the same config" in run.message
    assert (tmp_path / "run.1/checkpoints/step_5").is_dir()


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        opened(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be used"):
        opened(tmp_path / "file" / "run")


# --- resume_from


@pytest.mark.parametrize("state", ["interrupted", "done"])
def test_resume_from_a_step_of_this_run(tmp_path, state):
    path = lived(tmp_path / "run", 5, 10, state=state)
    for spec in ("step_5", str(path / "step_5"), str(path / "checkpoints" / "step_5")):
        run = opened(path, resume_from=spec)
        assert run.decision.action == "resume"
        assert run.decision.checkpoint.resolve() == (path / "checkpoints" / "step_5").resolve()
        assert status_of(path)["step"] == 5
        run.close()
    with pytest.raises(UsageError, match=r"resume_from=step_6.*step_5"):
        opened(path, resume_from="step_6")
    with pytest.raises(UsageError, match="nothing to resume"):
        opened(tmp_path / "other", resume_from="best")


def test_resume_from_another_run_branches_off_and_the_branch_goes_on(tmp_path):
    source = lived(tmp_path / "source", 5, state="done") / "checkpoints" / "step_5"
    path = lived(tmp_path / "run", 3)  # of the same identity, but no branch of source
    run = opened(path, resume_from=str(source))
    assert (run.decision.action, run.decision.checkpoint) == ("set_aside", source)
    assert "branching off" in run.message
    assert (tmp_path / "run.1/step_3").is_symlink()
    run.close()
    run = opened(path, resume_from=str(source))  # killed before its first checkpoint: again from the source
    assert (run.decision.action, run.decision.checkpoint) == ("restart", source)
    checkpoint(run, 8)
    run.close()
    run = opened(path, resume_from=str(source))  # the same command resumes
    assert (run.decision.action, run.decision.checkpoint) == ("resume", path / "checkpoints" / "step_8")
    run.close()
    with pytest.raises(UsageError, match="leave resume=true out"):
        opened(path, resume_from=str(source), resume="true")
    assert opened(path, resume_from=str(source), resume="false").decision.checkpoint == source


# --- time-stamped names


def test_auto_finds_the_newest_unfinished_run_of_the_same_identity(tmp_path):
    pattern = f"{tmp_path}/${{name}}_{NOW}"
    lived(tmp_path / "x_01-00-00", 1)
    newest = lived(tmp_path / "x_02-00-00", 2)
    lived(tmp_path / "x_03-00-00", 3, identity=TWO)
    lived(tmp_path / "x_04-00-00", 4, state="done")
    (tmp_path / "x_05-00-00").mkdir()
    run = opened(tmp_path / "x_06-00-00", pattern=pattern)
    assert (run.decision.action, run.path) == ("resume", newest)
    assert run.decision.checkpoint.name == "step_2"
    assert not (tmp_path / "x_06-00-00").exists()
    run.close()
    assert opened(tmp_path / "x_06-00-00", pattern=pattern, resume="false").path.name == "x_06-00-00"


def test_a_fixed_name_looks_nowhere_else(tmp_path):
    lived(tmp_path / "x_1", 1)
    assert opened(tmp_path / "x_2", pattern=f"{tmp_path}/x_${{number}}").decision.action == "new"


def test_a_run_set_aside_is_not_found_again_under_a_time(tmp_path):
    path = lived(tmp_path / "x_01", 1)
    opened(path, resume="false").close()
    (path / "identity.json").unlink()
    run = opened(tmp_path / "x_02", pattern=f"{tmp_path}/x_${{now:%H}}")
    assert (run.decision.action, run.path.name) == ("new", "x_02")


def test_true_under_a_time(tmp_path):
    pattern = f"{tmp_path}/{NOW}/x"
    done = lived(tmp_path / "01-00-00" / "x", 1, state="done")
    lived(tmp_path / "02-00-00" / "x", 2, identity=TWO)
    lived(tmp_path / "03-00-00" / "x")
    run = opened(tmp_path / "04-00-00" / "x", pattern=pattern, resume="true")
    assert (run.path, run.decision.action) == (done, "resume")
    run.close()
    run = opened(tmp_path / "04-00-00" / "x", pattern=pattern, resume_from=str(done / "step_1"))
    assert (run.path, run.decision.action) == (done, "resume")
    run.close()
    with pytest.raises(UsageError, match=r"nothing to resume.*\*/x"):
        opened(tmp_path / "04-00-00" / "x", {"lr": 3}, pattern=pattern, resume="true")


def test_newest_is_by_time_not_by_name(tmp_path):
    lived(tmp_path / "x_09", 1)
    time.sleep(0.002)
    newer = lived(tmp_path / "x_08", 2)
    assert opened(tmp_path / "x_10", pattern=f"{tmp_path}/x_${{now:%H}}").path == newer


# --- processes


@pytest.mark.parametrize("identity", [ONE, TWO])
def test_a_live_run_is_not_touched_and_a_killed_one_goes_on(tmp_path, identity):
    path = tmp_path / "run"
    code = (
        "import sys, time, torch\n"
        "from pathlib import Path\nfrom engine.run.directory import open_run\nfrom engine.run.request import RunRequest\nfrom engine.checkpoint.store import CheckpointStore\n"
        "run = open_run(RunRequest(Path(sys.argv[1]), {'lr': 0.1, 'arch': {'depth': 2}}, 'pretrain'))\n"
        "CheckpointStore(run.path, 'pretrain').save(4, model={'w': torch.zeros(2)}, config={})\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    try:
        assert child.stdout is not None
        while "ready" not in (line := child.stdout.readline()):
            assert line
        for resume in ("auto", "true", "false"):
            with pytest.raises(UsageError, match=f"{path} is in use by another process .pid {child.pid}"):
                opened(path, identity, resume=resume)
        assert [p.name for p in tmp_path.iterdir()] == ["run"]
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert status_of(path)["state"] == "running"
    run = opened(path, identity)
    if identity == ONE:
        assert (run.decision.action, run.decision.checkpoint.name) == ("resume", "step_4")
    else:
        assert run.decision.action == "set_aside"
        assert (tmp_path / "run.1/step_4/manifest.json").is_file()


def test_the_lock_lasts_until_closed(tmp_path):
    run = opened(tmp_path / "run")
    with pytest.raises(UsageError, match=f"pid {os.getpid()}"):
        opened(tmp_path / "run")
    run.close()
    opened(tmp_path / "run").close()


def test_a_decision_locks_and_changes_nothing(tmp_path):
    path = lived(tmp_path / "x_01", 1, state="done")
    before = sorted(p.stat().st_mtime_ns for p in path.rglob("*"))
    asked = RunRequest(tmp_path / "x_02", ONE, "pretrain", pattern=f"{tmp_path}/x_${{now:%H}}", resume="true")
    run = opened(path, resume="true")
    decision = resolve_run(asked)
    assert (decision.action, decision.path, decision.checkpoint.name) == ("resume", path, "step_1")
    run.close()
    assert len(before) == len(list(path.rglob("*")))
    with pytest.raises(UsageError, match="nothing to resume"):
        resolve_run(RunRequest(tmp_path / "x_02", ONE, "pretrain", resume="true"))


@pytest.mark.parametrize(
    ("state", "identity", "action"),
    [("interrupted", ONE, "resume"), ("done", ONE, "set_aside"), ("interrupted", TWO, "set_aside")],
)
def test_another_launch_that_came_first_is_seen_under_the_lock(tmp_path, state, identity, action):
    """Between the decision and the lock data and model are built: minutes, in which the place may be taken."""
    request = RunRequest(tmp_path / "run", ONE, "pretrain")
    decision = resolve_run(request)
    assert decision.action == "new"
    lived(tmp_path / "run", 5, state=state, identity=identity)
    run = open_run(request, decision)
    assert run.decision.action == action
    assert (run.decision.checkpoint is not None) == (action == "resume")
    assert (tmp_path / "run.1/checkpoints/step_5").is_dir() == (action == "set_aside")
    run.close()
    holder = opened(tmp_path / "run", TWO)
    with pytest.raises(UsageError, match="in use by another process"):
        open_run(request, decision)
    holder.close()


def test_a_run_that_takes_the_place_of_one_set_aside_resumes(tmp_path, monkeypatch):
    path, move = lived(tmp_path / "run", 5, identity=TWO), directory.set_aside

    def overtaken(place, others):
        target = move(place, others)
        lived(place, 7)  # another launch of the same command, interrupted already
        return target

    monkeypatch.setattr(directory, "set_aside", overtaken)
    run = opened(path)
    assert (run.decision.action, run.decision.checkpoint) == ("resume", path / "checkpoints/step_7")
    assert "is now run.1" in run.message
