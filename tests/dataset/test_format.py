"""Loading foreign and damaged data sets, the card, and the catalog of named ones."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest

from dataset import catalog
from dataset.build_sudoku_dataset import main
from dataset.format import load_split
from dataset.sudoku.build import SudokuBuild, build
from dataset.writing import describe
from engine.io import UsageError


@pytest.fixture
def root(tmp_path):
    build(SudokuBuild(output_dir=tmp_path / "set", size=4, num_train=20, num_test=6, num_aug=1))
    return tmp_path / "set"


def edit(root, **changes):
    path = root / "train/dataset.json"
    raw = json.loads(path.read_text())
    for key, value in changes.items():
        if value is KeyError:
            del raw[key]
        else:
            raw[key] = value
    path.write_text(json.dumps(raw))


def test_a_published_set_without_total_puzzles_and_with_int64_arrays_loads(root):
    edit(root, total_puzzles=KeyError, data_mode=KeyError, something_new=3)
    for name in ("inputs", "labels"):
        path = root / f"train/all__{name}.npy"
        np.save(path, np.load(path).astype(np.int64))
    split = load_split(root, "train")
    assert split.metadata.total_puzzles == 40
    assert split.metadata.data_mode == "embedding"
    assert split.batch(np.arange(3))["inputs"].dtype == np.int32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": KeyError}, "the key vocab_size is missing"),
        ({"vocab_size": "6"}, "vocab_size must be a whole number"),
        ({"seq_len": 0}, "seq_len must be"),
        ({"seq_len": 81}, "rows have 16 tokens, dataset.json says 81"),
        ({"pad_id": 99}, "pad_id lies outside"),
        ({"sets": []}, "sets must be"),
        ({"sets": ["all", "all"]}, "sets names one twice"),
        ({"sets": ["../test/all"]}, "names of files here, no paths"),
        ({"ignore_label_id": "none"}, "ignore_label_id must be"),
        ({"sets": ["other"]}, "other__puzzle_identifiers.npy does not exist"),
    ],
)
def test_nonsense_in_dataset_json_is_named(root, changes, words):
    edit(root, **changes)
    with pytest.raises(UsageError, match=words) as caught:
        load_split(root, "train")
    assert str(root / "train") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("labels", lambda a: a[:-1], "differs from the inputs"),
        ("puzzle_indices", lambda a: a[:-1], "expected 41 offsets"),
        ("puzzle_indices", lambda a: a * 2, "must end at the number of examples"),
        ("puzzle_indices", lambda a: a[::-1], "must start at 0"),
        ("group_indices", lambda a: np.sort(np.append(a, 4)), "rise by at least 1"),
        ("puzzle_identifiers", lambda a: a + 1, "identifiers must be 0 to 0"),
        ("inputs", lambda a: a.astype(float), "expected integers"),
        ("inputs", lambda a: a.ravel(), "expected 2 dimension"),
    ],
)
def test_inconsistent_arrays_are_named(root, name, change, words):
    path = root / f"train/all__{name}.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(UsageError, match=words) as caught:
        load_split(root, "train")
    assert str(path) in str(caught.value)


def test_truncated_and_missing_files_are_named(root):
    path = root / "train/all__inputs.npy"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UsageError, match=r"all__inputs\.npy"):
        load_split(root, "train")
    path.write_text("1,2,3\n")
    with pytest.raises(UsageError, match=r"is not a readable \.npy file: it does not begin as one"):
        load_split(root, "train")
    path.unlink()
    with pytest.raises(UsageError, match="does not exist"):
        load_split(root, "train")
    (root / "test/dataset.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        load_split(root, "test")


def test_describe_tells_the_card_and_whether_it_still_holds(root):
    card = describe(root)
    assert (card["source"], card["path"], card["seed"]) == ("generated", str(root), 0)
    assert "modified" not in card
    path = root / "test/all__labels.npy"
    np.save(path, np.load(path)[:, ::-1])
    changed = describe(root)
    assert changed["modified"] is True
    assert changed["content_hash"] != card["content_hash"]
    (root / "card.json").unlink()
    bare = describe(root)
    assert bare["source"] == "unknown"
    assert bare["counts"]["train"] == {"groups": 20, "puzzles": 40, "examples": 40}
    assert bare["content_hash"] == changed["content_hash"]


def test_ensure_builds_a_known_set_once_and_says_so_in_one_line(tmp_path, capsys):
    path = tmp_path / "data/debug-sudoku-4x4"
    assert catalog.ensure(path) == path
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert "64 training" in output
    stamp = (path / "card.json").stat().st_mtime_ns
    catalog.ensure(str(path))
    assert capsys.readouterr().out == ""
    assert (path / "card.json").stat().st_mtime_ns == stamp
    assert load_split(path, "test").num_examples == 16
    card = json.loads((path / "card.json").read_text())
    (path / "card.json").write_text(json.dumps({**card, "num_aug": 3, "counts": {**card["counts"], "test": {}}}))
    catalog.ensure(path)
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert (
        "other parameters than its name means now (counts.test.groups not recorded, now 16; num_aug 3, now 0)" in output
    )
    assert f"{catalog.build_command(path)} --overwrite" in output


def test_a_long_build_is_announced_with_its_cpu_time(tmp_path, capsys, monkeypatch):
    assert set(catalog.CPU_SECONDS) <= set(catalog.BUILT)
    monkeypatch.setattr(catalog, "CPU_SECONDS", {"debug-sudoku-4x4": 70})
    catalog.ensure(tmp_path / "debug-sudoku-4x4")
    assert "test puzzles of 4x4, generated, about 70 CPU seconds)" in capsys.readouterr().out


def test_the_build_command_gives_what_ensure_gives(tmp_path):
    catalog.ensure(tmp_path / "a/debug-sudoku-4x4")
    command = catalog.build_command(tmp_path / "b/debug-sudoku-4x4").split()
    assert main(command[3:]) == 0
    first, second = (describe(tmp_path / f"{d}/debug-sudoku-4x4")["content_hash"] for d in "ab")
    assert first == second


def _ensure(path, barrier, queue):
    barrier.wait(10)
    queue.put(catalog.ensure(path).name)


def test_several_ranks_may_ensure_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    path = tmp_path / "sudoku-default"
    processes = [context.Process(target=_ensure, args=(path, barrier, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == ["sudoku-default"] * 3
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [".sudoku-default.lock", "sudoku-default"]


def test_ensure_refuses_what_it_cannot_build(tmp_path):
    with pytest.raises(UsageError, match="--input FOLDER --subsample-size 1000 --num-aug 1000"):
        catalog.ensure(tmp_path / "sudoku-extreme-1k-aug-1000")
    with pytest.raises(UsageError, match="did you mean 'sudoku-4x4'"):
        catalog.ensure(tmp_path / "sudoku-4x")
    (tmp_path / "sudoku-4x4").mkdir()
    with pytest.raises(UsageError, match=r"dataset\.json does not exist"):
        catalog.ensure(tmp_path / "sudoku-4x4")
