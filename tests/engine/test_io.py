"""engine/io.py: files complete or absent, locks, words."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine import io
from engine.io import UsageError

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_write_replaces_whole_file_and_leaves_no_other(tmp_path):
    target = tmp_path / "deep" / "x.txt"
    io.atomic_write_text(target, "first, longer")
    io.atomic_write_text(target, "änd")
    assert target.read_bytes() == "änd".encode()
    assert names(target.parent) == {"x.txt"}


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "x.txt"
    io.atomic_write_text(target, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        io.atomic_write_text(target, "new")
    assert target.read_text() == "old"
    assert names(tmp_path) == {"x.txt"}


def test_json_takes_paths_and_numpy_and_refuses_objects(tmp_path):
    io.atomic_write_json(tmp_path / "a.json", {"z": Path("p"), "a": np.float32(0.5), "l": np.arange(2), "f": 1e-5})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"z": "p", "a": 0.5, "l": [0, 1], "f": 1e-5}
    assert text.index('"z"') < text.index('"a"')
    with pytest.raises(TypeError, match="object"):
        io.atomic_write_json(tmp_path / "a.json", {"x": object()})
    assert (tmp_path / "a.json").read_text() == text


def test_directory_appears_only_when_complete(tmp_path):
    final = tmp_path / "step"
    with io.atomic_directory(final) as folder:
        (folder / "a").write_text("1")
        assert not final.exists()
        assert folder.parent == tmp_path
    assert (final / "a").read_text() == "1"
    with pytest.raises(RuntimeError), io.atomic_directory(tmp_path / "other") as folder:  # noqa: PT012
        (folder / "a").write_text("1")
        raise RuntimeError
    assert names(tmp_path) == {"step"}


def test_directory_in_the_way_is_kept_unless_replaced(tmp_path):
    final = tmp_path / "step"
    final.mkdir()
    (final / "old").touch()
    with pytest.raises(FileExistsError), io.atomic_directory(final):
        pass
    with pytest.raises(RuntimeError), io.atomic_directory(final, replace=True):
        raise RuntimeError
    assert names(final) == {"old"}
    with io.atomic_directory(final, replace=True) as folder:
        (folder / "new").touch()
    assert names(final) == {"new"}
    assert names(tmp_path) == {"step"}


def test_the_slower_of_two_writers_of_one_directory_says_that_it_exists(tmp_path):
    """The rename fails as "Directory not empty", with the temporary name and a traceback."""
    final = tmp_path / "graph"
    with pytest.raises(FileExistsError, match=r"exists already.*graph'"), io.atomic_directory(final) as folder:  # noqa: PT012
        (folder / "mine").touch()
        with io.atomic_directory(final) as other:
            (other / "theirs").touch()
    assert names(final) == {"theirs"}
    assert names(tmp_path) == {"graph"}


def test_leftovers_go_and_a_directory_moved_aside_comes_back(tmp_path):
    (tmp_path / ".a.tmp-1-0").mkdir()
    (tmp_path / ".b.txt.tmp-1-0").touch()
    (tmp_path / ".step_1.old-1-0").mkdir()
    (tmp_path / ".step_2.old-1-0").mkdir()
    (tmp_path / "step_2").mkdir()
    (tmp_path / ".hidden").touch()
    assert len(io.remove_leftovers(tmp_path)) == 4
    assert names(tmp_path) == {"step_1", "step_2", ".hidden"}
    assert io.remove_leftovers(tmp_path / "absent") == []


def test_hashes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert io.sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()
    assert io.sha256_json({"a": 1, "b": [1.5, None]}) == io.sha256_json({"b": [1.5, None], "a": 1})
    assert io.sha256_json({"a": 1}) != io.sha256_json({"a": 2})
    assert io.sha256_json({2: 1, 10: 1}) == io.sha256_json({"2": 1, "10": 1})


def test_lock_is_exclusive_names_the_holder_and_dies_with_it(tmp_path):
    lock = tmp_path / ".lock"
    code = (
        "import sys, time\nfrom engine.io import file_lock\n"
        f"with file_lock({str(lock)!r}, wait=False):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"pid {child.pid}"), io.file_lock(lock, wait=False):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    own = pytest.raises(UsageError, match=str(os.getpid()))
    with io.file_lock(lock, wait=False), own, io.file_lock(lock, wait=False):
        pass
    with io.file_lock(lock, wait=True):
        pass


def test_say_and_progress_only_on_rank_0(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    io.print_rank0("one")
    monkeypatch.setenv("RANK", "1")
    io.print_rank0("two")
    assert list(io.progress(iter("ab"), total=2, label="x")) == ["a", "b"]
    assert capsys.readouterr() == ("one\n", "")


def test_progress_off_a_terminal_is_a_line_for_each_tenth_of_long_work(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    clock = [0.0]
    monkeypatch.setattr(io, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def work(count: int, seconds: float) -> Iterator[int]:
        for number in range(count):
            clock[0] += seconds
            yield number

    def lines(count: int, seconds: float, total: int | None) -> list[str]:
        assert list(io.progress(work(count, seconds), total=total, label="digging")) == list(range(count))
        out, error = capsys.readouterr()
        assert out == ""
        return error.splitlines()

    slow = lines(40, 10.0, 40)
    assert [line.split()[1] for line in slow] == ["4", "8", "12", "16", "20", "24", "28", "32", "36"]
    assert slow[0] == "digging: 4 of 40 after 40 s, about 360 s left"
    # 4 s for a tenth: a line when 20 s are over.
    assert lines(40, 1.0, 40) == ["digging: 20 of 40 after 20 s, about 20 s left"]
    assert lines(40, 0.4, 40) == lines(40, 10.0, None) == lines(0, 1.0, 0) == []


def test_closest():
    assert io.did_you_mean("hiden", ["hidden", "other"]) == "did you mean 'hidden'?"
    assert io.did_you_mean("decoder_freeze", ["decode_rate", "freeze_decoder"]) == "did you mean 'freeze_decoder'?"
    assert io.did_you_mean("AdamW", ["adam", "adamw"]) == "did you mean 'adamw'?"
    assert io.did_you_mean("zzz", ["b", "a"]) == "choose one of a, b"
    assert "(5 more)" in io.did_you_mean("zzz", [f"n{i}" for i in range(25)])
    assert io.did_you_mean("x", []) == "there is nothing to choose from"
