"""Checkpoints that are written beside the training: the same bytes as those that it waits for, however it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from engine.checkpoint import store as store_module
from engine.checkpoint.manifest import find_fault, step_folders
from engine.checkpoint.state_tree import RowSharded, copied
from engine.checkpoint.store import Background
from tests.conftest import _entry, finish, metrics, run_script, start_forked, status_of

RUN = (
    "--config-name=cfg_pretrain_sudoku_4x4",
    "+debug=tiny",
    "device=cpu",
    "max_steps=12",
    "epochs=4",
    "checkpoint_interval=2",
    "keep_last=9",
    "log_interval=2",
    "arch.halt_max_steps=4",
    "arch.puzzle_emb_ndim=32",
    "arch.puzzle_emb_len=2",
    "puzzle_emb_lr=0.01",
    "run_dir=run",
    "verify=off",
)
write = store_module.write_checkpoint


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps fit into the time that one checkpoint takes (forks inherit it)."""

    def slowly(folder: Path, entry: str, contents) -> None:
        time.sleep(0.15)
        write(folder, entry, contents)
        time.sleep(0.05)

    monkeypatch.setattr(store_module, "write_checkpoint", slowly)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A run that waits for each checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "data").symlink_to(tiny_data)
    done = run_script("pretrain", *RUN, "checkpoint_background=false", cwd=folder)
    assert done.code == 0, done.output
    return folder / "run"


def sums(run: Path) -> dict[int, dict]:
    """The checksums of each checkpoint's tensors and state."""
    hashes = {}
    for step, folder in step_folders(run / "checkpoints").items():
        assert find_fault(folder) is None
        files = json.loads((folder / "manifest.json").read_text())["files"]
        hashes[step] = {name: entry["sha256"] for name, entry in files.items()}
    return hashes


def test_a_piece_of_work_waits_for_the_one_before_it_and_its_error_comes_once() -> None:
    background, order = Background(), []

    def work(number: int) -> None:
        time.sleep(0.03 / number)
        order.append(number)
        if number == 2:
            raise OSError("full")

    background.start(lambda: work(1))
    background.start(lambda: work(2))
    with pytest.raises(OSError, match="full"):
        background.start(lambda: work(3))
    background.wait()
    assert order == [1, 2]


def test_a_copy_shares_nothing_but_what_is_tied() -> None:
    tied = torch.ones(3)
    tree = {"a": tied, "b": tied, "c": [RowSharded(torch.zeros(2)), (1, "x", None)], "view": tied[:2]}
    copy = copied(tree)
    tied.add_(1)
    assert copy["a"] is copy["b"]
    assert copy["a"].tolist() == [1, 1, 1]
    assert copy["view"].tolist() == [1, 1]
    assert copy["c"][0].tensor.data_ptr() != tree["c"][0].tensor.data_ptr()
    assert copy["c"][1] == (1, "x", None)


def test_the_same_bytes_while_training_continues(whole: Path, workplace: Path, slow: None) -> None:
    began = time.monotonic()
    done = run_script("pretrain", *RUN, "checkpoint_background=true", cwd=workplace)
    assert done.code == 0, done.output
    assert time.monotonic() - began > 1.0  # six slow saves: each waits for the one before it
    run = workplace / "run"
    assert sums(run) == sums(whole)
    assert metrics(run) == metrics(whole)
    assert (run / "checkpoints/latest").read_text() == "step_12\n"
    assert (run / "step_12").is_symlink()
    assert status_of(run)["state"] == "done"


def test_large_models_do_so_by_themselves(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = workplace / "started"
    start = Background.start

    def noted(self: Background, work) -> None:
        started.write_text(started.read_text() + "x" if started.exists() else "x")
        start(self, work)

    monkeypatch.setattr(Background, "start", noted)
    assert run_script("pretrain", *RUN, "max_steps=4", cwd=workplace).code == 0
    assert not started.exists()
    monkeypatch.setattr("engine.run.session.LARGE", 1000)
    assert run_script("pretrain", *RUN, "max_steps=4", "run_dir=large", cwd=workplace).code == 0
    assert started.read_text() == "x"  # step 2; the last one is waited for


def test_without_memory_for_the_copy_it_is_written_at_once(
    whole: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(tree):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("engine.run.session.copied", none_left)
    done = run_script("pretrain", *RUN, "checkpoint_background=true", cwd=workplace)
    assert done.code == 0, done.output
    assert sums(workplace / "run") == sums(whole)


def test_a_full_disk_is_a_warning_and_another_error_ends_the_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(folder: Path, entry: str, contents) -> None:
        if contents.step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        if contents.step == 8:
            raise TypeError("a leaf of another kind")
        write(folder, entry, contents)

    monkeypatch.setattr(store_module, "write_checkpoint", failing)
    done = run_script("pretrain", *RUN, "checkpoint_background=true", cwd=workplace)
    assert done.code == 1
    assert "step_4 could not be written (No space left on device)" in done.output
    assert "training continues" in done.output
    assert "a leaf of another kind" in done.output
    assert list(sums(workplace / "run")) == [2, 6]
    assert not [path for path in (workplace / "run/checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("background", ["true", "false"])
@pytest.mark.parametrize("fails", [1, 9])
def test_a_signal_after_a_save_that_failed_saves_again(
    background: str, fails: int, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses the checkpoint of step 4, `fails` times; a signal comes in that step."""
    failed = []

    def failing(folder: Path, entry: str, contents) -> None:
        if contents.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            if len(failed) < fails:
                failed.append(4)
                raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, entry, contents)

    monkeypatch.setattr(store_module, "write_checkpoint", failing)
    start = Background.start

    def start_and_finish(self: Background, work) -> None:
        start(self, work)
        assert self._outcome is not None
        self._outcome.exception()  # waits, so that the signal is here when the trainer asks for it

    monkeypatch.setattr(Background, "start", start_and_finish)
    done = run_script("pretrain", *RUN, f"checkpoint_background={background}", cwd=workplace)
    stopped, kept = "the same command resumes from there", list(sums(workplace / "run"))
    assert (done.code, kept, stopped in done.output) == ((3, [2, 4], True) if fails == 1 else (1, [2], False))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_while_one_is_written(number: int, whole: Path, workplace: Path, slow: None) -> None:
    process, connection = start_forked(_entry, "pretrain", [*RUN, "checkpoint_background=true"], cwd=workplace)
    store = workplace / "run/checkpoints"
    while process.is_alive() and not list(store.glob(".step_4.tmp-*")):
        time.sleep(0.002)
    os.kill(process.pid, number)
    code = finish(process, connection).code
    assert code == (3 if number == signal.SIGTERM else -number)
    for folder in step_folders(store).values():  # complete or absent
        assert find_fault(folder) is None
    assert bool(list(store.glob(".*.tmp-*"))) == (number == signal.SIGKILL)
    done = run_script("pretrain", *RUN, "checkpoint_background=true", cwd=workplace)
    assert done.code == 0, done.output
    assert "resuming from step_" in done.output
    last = sums(workplace / "run")[12]
    assert {name: last[name] for name in last if name != "state.json"} == {
        name: value for name, value in sums(whole)[12].items() if name != "state.json"
    }
    assert metrics(workplace / "run") == metrics(whole)
    assert not list(store.glob(".*"))


def test_episodes_may_be_left_out(whole: Path, workplace: Path) -> None:
    assert run_script("pretrain", *RUN, "checkpoint_carry=false", "max_steps=6", cwd=workplace).code == 0
    state = json.loads((workplace / "run/step_6/state.json").read_text())
    assert state["task"] == {}
    assert json.loads((whole / "step_6/state.json").read_text())["task"]["carry"]
    resumed = run_script(
        "pretrain", "resume=true", "run_dir=run", "max_steps=12", "checkpoint_carry=true", cwd=workplace
    )
    assert resumed.code == 0, resumed.output
    assert metrics(workplace / "run")[-2:] != metrics(whole)[-2:]  # every slot began afresh
    assert json.loads((workplace / "run/step_12/state.json").read_text())["task"]["carry"]
