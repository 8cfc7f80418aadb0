"""Who else is in a run directory: other runs, killed writers' files, links that lead away."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from pathlib import Path

import pytest
import torch

from engine.checkpoint.store import CheckpointStore
from engine.errors import UsageError
from engine.io import atomic_write_text
from engine.loggers.sinks import WholeFile
from engine.run.aside import SET_ASIDE
from engine.run.files import read_json, truncate_to
from tests.engine.test_rundir import ONE, TWO, checkpoint, lived, opened


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# --- other runs inside


@pytest.mark.parametrize("inside", ["a", "group/a", "group/deeper/a"])
@pytest.mark.parametrize("identity", [ONE, TWO])
def test_runs_inside_stay_where_they_are(tmp_path: Path, inside: str, identity: dict) -> None:
    out = lived(tmp_path / "out", 5, state="done")
    live = opened(out / inside)
    checkpoint(live, 1)
    (out / "notes").mkdir()
    before = tree(out / inside)
    run = opened(out, identity)
    assert run.decision.action == "set_aside"
    assert f"is now out.1 ({out / inside.split('/')[0]} stays)" in run.message
    assert tree(out / inside) == before
    live.set_status("done")
    assert not (tmp_path / "out.1" / inside.split("/")[0]).exists()
    assert (tmp_path / "out.1/checkpoints/step_5/manifest.json").is_file()
    assert (tmp_path / "out.1/step_5/manifest.json").is_file()
    assert not (out / "checkpoints").exists()
    assert not (out / "step_5").is_symlink()
    assert opened(tmp_path / "out.1", resume="true").decision.action == "resume"


def test_a_linked_run_inside_stays(tmp_path: Path) -> None:
    out = lived(tmp_path / "out", 5, state="done")
    other = lived(tmp_path / "elsewhere", 1)
    (out / "a").symlink_to(other)
    opened(out)
    assert (out / "a/checkpoints/step_1").is_dir()


def test_a_run_starts_beside_the_runs_inside_its_folder(tmp_path: Path) -> None:
    lived(tmp_path / "out/shakespeare", 5)
    lived(tmp_path / "out/group/x", 5)
    run = opened(tmp_path / "out")
    assert run.message == f"{tmp_path / 'out'}: new run"
    with pytest.raises(UsageError, match="in use"):
        opened(tmp_path / "out", TWO)


def test_a_folder_with_anything_else_is_still_refused(tmp_path: Path) -> None:
    lived(tmp_path / "out/a", 5)
    (tmp_path / "out/letters").mkdir()
    with pytest.raises(UsageError, match="is not empty and not a run"):
        opened(tmp_path / "out")


def test_runs_where_a_run_keeps_its_own_files_are_refused(tmp_path: Path) -> None:
    lived(tmp_path / "checkpoints/p/r", 5)
    with pytest.raises(UsageError, match=r"another run, .*checkpoints/p/r, is in the folder checkpoints/"):
        opened(tmp_path)
    assert opened(tmp_path / "checkpoints").decision.action == "new"
    with pytest.raises(UsageError, match="is inside samples/ of the run"):
        opened(tmp_path / "checkpoints/p/r/samples/x")


def test_a_kill_while_a_run_is_set_aside_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, count = os.rename, len(list(lived(tmp_path / "count", 5, state="done").iterdir()))

    class Killed(BaseException):
        pass

    for stop in range(count):  # .lock stays, the mark goes last
        out = lived(tmp_path / f"at{stop}/out", 5, state="interrupted")
        lived(out / "a", 1)
        calls: list[str] = []

        def dying(old, new, calls=calls, stop=stop) -> None:
            if len(calls) == stop:
                raise Killed
            calls.append(str(old))
            rename(old, new)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", dying)
            with pytest.raises(Killed):
                opened(out, resume="false")
        run = opened(out, resume="false")
        assert (run.decision.action, (out / "a/checkpoints/step_1").is_dir()) == ("set_aside", True)
        aside = tmp_path / f"at{stop}/out.1"
        assert sorted(p.name for p in aside.parent.iterdir()) == ["out", "out.1"]
        assert read_json(aside / "status.json")["state"] == "interrupted"
        assert (aside / "checkpoints/step_5/manifest.json").is_file()
        assert not (out / SET_ASIDE).exists()
        run.close()


def test_a_run_that_is_half_moved_is_not_gone_on_with(tmp_path: Path) -> None:
    out = lived(tmp_path / "out", 5)
    (tmp_path / "out.1").mkdir()
    (out / SET_ASIDE).write_text("out.1\n")
    assert opened(out).decision.action == "set_aside"
    assert (tmp_path / "out.1/checkpoints/step_5").is_dir()


@pytest.mark.parametrize("text", ["out.1", "../elsewhere.1", "elsewhere", ""])
def test_a_stale_or_forged_mark_moves_nothing(tmp_path: Path, text: str) -> None:
    out = lived(tmp_path / "out", 5)
    (tmp_path / "elsewhere").mkdir()
    (out / SET_ASIDE).write_text(text)
    assert opened(out).decision.action == "resume"
    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- killed writers


@pytest.mark.parametrize("name", [".identity.json.tmp-123-0", ".status.json.tmp-9-4", ".config.yaml.tmp-1-1"])
def test_what_a_killed_start_left_locks_nobody_out(tmp_path: Path, name: str) -> None:
    for folder in ("run", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("{")
        (tmp_path / folder / ".lock").touch()
    assert opened(tmp_path / "run").message == f"{tmp_path / 'run'}: new run"
    assert not (tmp_path / "run" / name).exists()
    (tmp_path / "other/letter.txt").touch()
    with pytest.raises(UsageError, match="not a run"):
        opened(tmp_path / "other")
    assert (tmp_path / "other" / name).exists()


@pytest.mark.parametrize("name", ["samples", "evaluations"])  # where tasks report to
def test_leftovers_in_the_runs_own_folders_go(tmp_path: Path, name: str) -> None:
    path = lived(tmp_path / "run", 5)
    (path / name).mkdir()
    (path / name / ".step_5.txt.tmp-3-3").touch()
    opened(path)
    assert list((path / name).iterdir()) == []


@pytest.mark.parametrize("died_at", ["rename", "best", "latest"])
def test_a_kill_after_a_checkpoints_rename_loses_nothing(tmp_path: Path, monkeypatch, died_at: str) -> None:
    path = lived(tmp_path / "run")
    store = CheckpointStore(path, "pretrain")

    def save(step: int, value: float) -> None:
        metric = {"name": "loss", "value": value, "goal": "min"}
        store.save(step, model={"w": torch.zeros(2)}, config={}, metric=metric)

    class Killed(BaseException):
        pass

    def dying(place, text, real=atomic_write_text) -> None:
        if died_at == "rename" or (died_at == "latest" and Path(place).name == "latest"):
            raise Killed
        real(place, text)
        if died_at == Path(place).name:
            raise Killed

    save(1, 0.9)
    with monkeypatch.context() as patch:
        patch.setattr("engine.checkpoint.store.atomic_write_text", dying)
        with pytest.raises(Killed):
            save(2, 0.1)
    run = opened(path)
    assert run.decision.checkpoint == path / "checkpoints/step_2"
    assert store.best() == path / "checkpoints/step_2"
    assert (path / "checkpoints/latest").read_text() == "step_2\n"
    assert (path / "step_2").is_symlink()
    save(3, 0.5)
    save(4, 0.6)
    store.prune(keep_last=1)
    assert store.steps() == [2, 4]


def test_going_back_is_not_undone(tmp_path: Path) -> None:
    path = lived(tmp_path / "run", 5, 10)
    run = opened(path, resume_from="step_5")
    checkpoint(run, 7)
    run.close()
    assert opened(path).decision.checkpoint == path / "checkpoints/step_7"


# --- links that lead out

FILES = """
    metrics.jsonl metrics.csv config.yaml config.resolved.yaml status.json identity.json environment.json
    overrides.txt summary.json path_signature.json wandb_id.txt
""".split()


@pytest.mark.parametrize(
    "name",
    [
        *FILES,
        ".lock",
        "checkpoints",
        "tensorboard",
        "samples",
        "profile",
        "wandb",
        "checkpoints/step_5",
        "samples/step_5.txt",
        "checkpoints/latest",
    ],
)
@pytest.mark.parametrize("resume", ["auto", "false"])
def test_a_link_out_of_the_run_is_refused_and_not_followed(tmp_path: Path, name: str, resume: str) -> None:
    path = lived(tmp_path / "run", 4, 5)
    (path / "samples").mkdir()
    outside = tmp_path / "outside"
    place = path / name
    if place.exists():
        place.rename(outside)
    elif "." in name:
        outside.write_text("precious\n")
    else:
        outside.mkdir()
        (outside / ".precious.tmp-1-1").touch()
    place.symlink_to(outside)
    before = tree(tmp_path), outside.stat().st_mtime_ns
    with pytest.raises(UsageError, match="symbolic link") as refused:
        opened(path, resume=resume)
    assert name in str(refused.value)
    assert (tree(tmp_path), outside.stat().st_mtime_ns) == before
    assert not (tmp_path / "run.1").exists()


@pytest.mark.parametrize("name", ["config.resolved.yaml", ".lock", "checkpoints", "checkpoints/latest"])
def test_a_link_that_leads_to_itself_is_named(tmp_path: Path, name: str) -> None:
    place = lived(tmp_path / "run", 4, 5) / name
    if os.path.lexists(place):
        place.rename(tmp_path / "was")
    place.symlink_to(place.name)
    with pytest.raises(UsageError, match=f"{re.escape(name)} is a symbolic link") as refused:
        opened(tmp_path / "run")
    assert "remove" in str(refused.value)


def test_writers_follow_no_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("one\ntwo\n")
    link = tmp_path / "metrics.jsonl"
    link.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"):
        WholeFile(link)
    with pytest.raises(OSError, match="symbolic"):
        truncate_to(link, 4)
    assert precious.read_text() == "one\ntwo\n"


def test_pruning_removes_a_link_and_not_what_it_names(tmp_path: Path) -> None:
    path = lived(tmp_path / "run", 1, 2)
    store = CheckpointStore(path, "pretrain")
    outside = tmp_path / "outside"
    (path / "checkpoints/step_1").rename(outside)
    (path / "checkpoints/step_1").symlink_to(outside)
    store.prune(keep_last=1)
    store.save(1, model={"w": torch.ones(2)}, config={})
    assert (outside / "manifest.json").is_file()
    assert not (path / "checkpoints/step_1").is_symlink()


# --- file systems that can do less


def test_a_file_system_without_links(tmp_path: Path, monkeypatch, capsys) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "symlink", refuse)
    run = opened(tmp_path / "run")
    run.write_config("a: 1\n", {"a": 1})
    for step in (1, 2, 3):
        checkpoint(run, step)
    assert capsys.readouterr().out.count("warning: no link") == 1
    run.close()
    assert opened(tmp_path / "run").decision.checkpoint == tmp_path / "run/checkpoints/step_3"


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch, capsys, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert opened(tmp_path / "run").decision.action == "new"
    assert "warning: no lock on" in capsys.readouterr().out


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("function", ["open", "mkdir", "replace", "rename", "fsync", "listdir"])
def test_a_disk_that_refuses_is_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch, code: int, function: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    lived(tmp_path / "old", 5, state="done")
    before = (tmp_path / "old/checkpoints/step_5/manifest.json").read_bytes()
    for place in (tmp_path / "old", tmp_path / "new"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, refuse)
            fault = contextlib.suppress(UsageError)
            with fault if function in ("listdir", "rename") else pytest.raises(UsageError, match=os.strerror(code)):
                opened(place, TWO).close()
        assert opened(place, TWO).decision.action != "finished"
    manifests = [path.read_bytes() for path in tmp_path.glob("old*/checkpoints/step_5/manifest.json")]
    assert manifests == [before]
