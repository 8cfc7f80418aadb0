"""Checkpoints when things go wrong: disk full, kill -9, damage, pickles, foreign manifests."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.checkpoint.manifest import load_checkpoint, previous_good
from engine.checkpoint.store import CheckpointStore, CheckpointWriteError
from engine.errors import UsageError
from engine.io import sha256_json
from engine.run.load_run import find_checkpoint
from tests.engine.checkpoint_cases import FILES, ROOT, content, save, store_at

# --- disk full, kill -9


def test_full_disk_leaves_everything_as_it_was(tmp_path):
    """A real limit of the operating system in a child process: the file cannot grow beyond 100 kB."""
    store = store_at(tmp_path)
    save(store, 1, value=0.1)
    before = content(store.run_dir)

    def child(report):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save(store, 2, value=0.9, model={"big": torch.zeros(100_000)})
        except CheckpointWriteError as error:
            report.put((isinstance(error, OSError), str(error)))
        else:
            report.put("saved")

    context = multiprocessing.get_context("fork")
    report = context.Queue()
    process = context.Process(target=child, args=(report,))
    process.start()
    outcome = report.get(timeout=30)
    process.join()
    assert outcome[0] is True
    assert "step_2 could not be written (File too large)" in outcome[1]
    assert content(store.run_dir) == before
    assert sorted(p.name for p in store.folder.iterdir()) == ["best", "latest", "step_1"]


@pytest.mark.parametrize("at", range(1, 12, 2))
def test_error_at_any_sync_is_a_write_error(tmp_path, monkeypatch, at):
    store = store_at(tmp_path)
    save(store, 1)
    before = content(store.run_dir)
    calls = [0]
    real = os.fsync

    def failing(handle):
        calls[0] += 1
        if calls[0] == at:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CheckpointWriteError, match="No space left"):
        save(store, 2)
    after = content(store.run_dir)
    assert all(after[name] == data for name, data in before.items())
    assert not [p for p in store.folder.iterdir() if p.name.startswith(".")]
    assert load_checkpoint(store.latest()).step in (1, 2)


def test_kill_9_in_the_middle_of_saving(tmp_path):
    code = (
        "import sys, torch\nfrom engine.checkpoint.store import CheckpointStore\n"
        "store = CheckpointStore(sys.argv[1], 'pretrain')\nstep = int(sys.argv[2])\n"
        "while True:\n"
        "    model = {f'w{i}': torch.full((20000,), float(step)) for i in range(8)}\n"
        "    store.save(step, model=model, ema=model, state={'step': step}, config={}, metric=None)\n"
        "    store.prune(keep_last=2)\n"
        "    print(step, flush=True)\n    step += 1\n"
    )
    store = store_at(tmp_path)
    start = 1
    for delay in (0.0, 0.007):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(store.run_dir), str(start)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)  # somewhere inside a later save
        child.send_signal(signal.SIGKILL)
        child.communicate()
        for step in store.steps():
            checkpoint = load_checkpoint(store.folder / f"step_{step}")
            assert checkpoint.step == step
            assert checkpoint.state() == {"step": step}
            assert checkpoint.model["w0"][0] == step
        start = load_checkpoint(store.latest()).step + 1
    store.recover()
    assert not [p for p in store.folder.iterdir() if p.name.startswith(".")]


def kill_self_at(number: int, folder: Path) -> None:
    """SIGKILL this process before its `number`-th file operation below `folder` (audit events)."""
    seen = [0]

    def hook(event: str, arguments: tuple) -> None:
        if event.partition(".")[0] in ("open", "os", "shutil") and any(str(folder) in str(a) for a in arguments):
            seen[0] += 1
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.slow
def test_kill_9_at_every_file_operation(tmp_path):
    """Save a step, save it again, prune: cut off anywhere, all that is there is complete."""
    context = multiprocessing.get_context("fork")

    def child(number: int, store: CheckpointStore) -> None:
        kill_self_at(number, store.run_dir)
        save(store, 2)
        save(store, 2)
        store.prune(keep_last=1)

    number, exit_code = 0, -signal.SIGKILL
    while exit_code == -signal.SIGKILL:
        number += 1
        store = CheckpointStore(tmp_path / str(number), "pretrain")
        save(store, 1)
        process = context.Process(target=child, args=(number, store))
        process.start()
        process.join()
        exit_code = process.exitcode or 0
        for cleaned in (False, True):
            for step in store.steps():
                assert load_checkpoint(store.folder / f"step_{step}").step == step, (number, cleaned)
            assert load_checkpoint(store.latest()).step in (1, 2), (number, cleaned)
            store.recover()
        assert not [path for path in store.folder.iterdir() if path.name.startswith(".")]
        shutil.rmtree(store.run_dir)
    assert exit_code == 0
    assert number > 40  # the hook did see the operations


# --- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_the_previous_good_one_offered(tmp_path, name, damage):
    store = store_at(tmp_path)
    for step in (5, 10, 15, 20):
        save(store, step)
    flip(store.folder / "step_15" / "model.safetensors")  # so the previous *good* one is step_10
    damage(store.folder / "step_20" / name)
    store.recover()
    latest = store.resolve("latest")
    with pytest.raises(UsageError) as caught:
        load_checkpoint(latest)
    text = str(caught.value)
    assert "\n" not in text
    assert f"step_20: {name} " in text
    assert text.endswith("; the previous good one is step_10: add resume_from=step_10")
    with pytest.raises(UsageError, match=f"the previous good one is {store.folder}/step_10$"):  # for a script
        find_checkpoint(store.run_dir, checksums=True)
    assert previous_good(store.folder, 20) == store.folder / "step_10"
    assert previous_good(store.folder, 5) is None


def test_every_single_flipped_bit_of_the_manifest_is_noticed_or_harmless(tmp_path):
    final = save(store_at(tmp_path), 2)
    path = final / "manifest.json"
    good = path.read_bytes()
    value = json.loads(good)
    for position in range(0, len(good), 3):
        bad = bytearray(good)
        bad[position] ^= 2
        path.write_bytes(bytes(bad))
        try:
            load_checkpoint(final)
        except UsageError:
            continue
        assert json.loads(bytes(bad)) == value, good[position - 20 : position + 20]


class Bomb:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("make", [pickle.dumps, "torch"], ids=["pickle", "zip"])
@pytest.mark.parametrize("name", FILES[1:4])
@pytest.mark.parametrize("checksums_match", [False, True])
def test_a_pickle_bomb_is_refused_and_not_executed(tmp_path, name, checksums_match, make):
    final = save(store_at(tmp_path), 7)
    crater = tmp_path / "crater"
    if make == "torch":
        torch.save({"w": Bomb(crater)}, final / name)
    else:
        (final / name).write_bytes(make(Bomb(crater)))
    if checksums_match:
        data = (final / name).read_bytes()
        manifest = json.loads((final / "manifest.json").read_text())
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        del manifest["sha256"]
        manifest["sha256"] = sha256_json(manifest)
        (final / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=name):
        load_checkpoint(final)
    assert not crater.exists()
    pickle.loads(pickle.dumps(Bomb(crater)))  # the bomb is a real one
    assert crater.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "format_version 2, this program reads up to 1"),
        ({"format_version": None}, "not the manifest of a checkpoint"),
        ({"step": 8}, "manifest.json"),
        ({"files": {}}, "does not list model.safetensors"),
        ({"config": None}, "lacks a usable 'config'"),
        ({"config": {}}, "does not match its own checksum"),
    ],
)
def test_manifests_that_are_not_ours(tmp_path, change, words):
    final = save(store_at(tmp_path), 7)
    path = final / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UsageError, match=words) as caught:
        load_checkpoint(final)
    assert "no earlier one is intact" in str(caught.value)


def test_a_file_outside_the_directory_cannot_be_listed(tmp_path):
    final = save(store_at(tmp_path), 7)
    path = final / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../x.pkl"] = {"sha256": "", "size": 0}
    path.write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="does not belong there"):
        load_checkpoint(final)
