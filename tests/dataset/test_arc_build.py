"""The ARC builder against the public algorithm, its two forms against each other, and what it does with bad input."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dataset.arc import build as build_module
from dataset.arc.build import ArcBuild, build, build_subsets
from dataset.arc.draws import Draws
from dataset.arc.tasks import Subset, read_bundles, read_task
from dataset.build_arc_dataset import main
from dataset.format import load_split, load_splits
from dataset.metadata import ARRAYS, save_array
from dataset.sampler import TrainSampler
from dataset.writing import content_hash, describe
from engine.io import RunFailure, UsageError
from tests.conftest import SHARED, files_of_at_most
from tests.dataset import naive_arc
from tests.dataset.arc_tasks import random_tasks, symmetric_task, write_bundle, write_folder

SUBSETS = ("training", "evaluation")
NUM_AUG = 12
RENAMED = np.array([0, 4, 5, 1, 2, 3, 9, 8, 7, 6])
"""Another name of each colour but the background."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> str:
    """Prefix of two subsets: six tasks to train on, one symmetric and one of full canvases, and four to test on."""
    folder = tmp_path_factory.mktemp("bundles")
    full = {"input": [[3] * 30] * 30, "output": [[4] * 30] * 2}
    extra = {"symmetric": symmetric_task(), "full": {"train": [full, full], "test": [full]}}
    write_bundle(folder, "evaluation", random_tasks(4, 7))
    return write_bundle(folder, "training", {**random_tasks(4, 5), **extra})


def plan(bundles: str, folder: Path, **changes) -> ArcBuild:
    values = {"prefix": bundles, "subsets": SUBSETS, "num_aug": NUM_AUG, "workers": 1}
    return ArcBuild(output_dir=folder, **{**values, **changes})


@pytest.fixture(scope="module")
def built(bundles, tmp_path_factory) -> dict[str, Path]:
    """The same data set in both forms."""
    folder = tmp_path_factory.mktemp("built")
    for compact in (False, True):
        build(plan(bundles, folder / ("compact" if compact else "arrays"), compact=compact))
    return {name: folder / name for name in ("compact", "arrays")}


def assert_published(prefix: str, subsets: tuple[str, ...], test_set: str, num_aug: int, root: Path) -> None:
    """Whether the set at `root` is what the public algorithm makes of these bundles, byte for byte."""
    files = [
        (name, *(json.loads(Path(f"{prefix}_{name}_{kind}.json").read_text()) for kind in ("challenges", "solutions")))
        for name in subsets
    ]
    expected = naive_arc.build(files, test_set, num_aug=num_aug)
    assert json.loads((root / "identifiers.json").read_text()) == expected["identifiers"]
    assert json.loads((root / "test_puzzles.json").read_text()) == expected["test_puzzles"]
    for split in ("train", "test"):
        for array in ARRAYS["arrays"]:
            values = np.load(root / split / f"all__{array}.npy")
            assert values.dtype == (np.uint8 if array in ("inputs", "labels") else np.int32)
            assert (values == expected[split][array]).all(), (split, array)


def test_arrays_and_names_of_the_public_algorithm(bundles, built):
    assert_published(bundles, SUBSETS, "evaluation", NUM_AUG, built["arrays"])
    names = json.loads((built["arrays"] / "identifiers.json").read_text())
    assert sum(name.startswith("symmetric") for name in names) == 9
    assert describe(built["arrays"])["tasks_with_fewer_augmentations"] == {"symmetric": 9}


def test_arrays_and_names_of_the_public_algorithm_on_real_tasks(tmp_path):
    source = SHARED / "data/arc-bundles/arc-agi"
    if not source.parent.exists():
        pytest.skip(f"the public tasks are not here: {source.parent}")
    for subset in read_bundles(str(source), ("training", "evaluation", "concept")):
        write_bundle(tmp_path / "cut", subset.name, {task.name: task.to_json() for task in subset.tasks[:3]})
    prefix, subsets = str(tmp_path / "cut/t"), ("training", "evaluation", "concept")
    build(ArcBuild(output_dir=tmp_path / "set", prefix=prefix, subsets=subsets, num_aug=20, workers=1))
    assert_published(prefix, subsets, "evaluation", 20, tmp_path / "set")


def test_draws_are_numpys():
    np.random.seed(3)  # noqa: NPY002
    draws, items = Draws(3), [list(range(50)), list(range(50))]
    np.random.shuffle(items[0])  # noqa: NPY002
    draws.shuffle(items[1])
    assert items[0] == items[1]
    for _ in range(300):
        expected = np.random.randint(0, 8), np.random.permutation(np.arange(1, 10, dtype=np.uint8)).tobytes()  # noqa: NPY002
        assert draws.augmentation() == expected
        for size in (1, 2, 3, 7, 17, 30):
            assert draws.up_to(size - 1) == np.random.randint(0, size)  # noqa: NPY002


def test_both_forms_give_the_same_batches(built):
    both = [load_splits([root], "train") for root in built.values()]
    samplers = [TrainSampler(splits, seed=1, global_batch_size=16, epochs_per_iter=20) for splits in both]
    assert samplers[0].batches_in(1) == samplers[1].batches_in(1) > 2
    for index in range(samplers[0].batches_in(1)):
        compact, arrays = (sampler.batch(1, index) for sampler in samplers)
        for key, value in arrays.items():
            assert value.dtype == compact[key].dtype
            assert (value == compact[key]).all()
        assert samplers[0].rows(1, index, 0, 16)["inputs"].flags.writeable  # torch warns of arrays that are not
    compact, arrays = (load_split(root, "test") for root in built.values())
    for name in ("inputs", "labels"):
        rows, made = getattr(arrays, name), getattr(compact, name)
        assert (made.shape, made.size, made.ndim, len(made)) == (rows.shape, rows.size, rows.ndim, len(rows))
        assert (np.array(made) == rows).all()
        assert (made[3] == rows[3]).all()
        assert (made[2:9:3] == rows[2:9:3]).all()
        assert all((a == b).all() for a, b in zip(made, rows, strict=True))
    assert (built["compact"] / "identifiers.json").read_bytes() == (built["arrays"] / "identifiers.json").read_bytes()


def test_workers_and_form_change_no_data(bundles, built, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "BLOCK", 50)
    card = build(plan(bundles, tmp_path / "set", workers=2))
    assert card["content_hash"] == content_hash(built["arrays"]) == describe(built["arrays"])["content_hash"]
    assert describe(built["compact"])["counts"] == card["counts"]
    other = build(plan(bundles, tmp_path / "other", seed=43))
    assert other["content_hash"] != card["content_hash"]


def test_identifiers_may_start_later(bundles, built, tmp_path):
    build(plan(bundles, tmp_path / "set", identifiers_start=5))
    names = json.loads((tmp_path / "set/identifiers.json").read_text())
    assert names[:5] == ["<blank>"] * 5
    assert names[5:] == json.loads((built["arrays"] / "identifiers.json").read_text())[1:]
    train, test = load_split(tmp_path / "set", "train"), load_split(tmp_path / "set", "test")
    assert train.puzzle_identifiers.min() == 5
    assert set(test.puzzle_identifiers) <= set(train.puzzle_identifiers)


def test_folders_of_tasks(tmp_path):
    tasks = random_tasks(3, 1)
    write_folder(tmp_path / "arc/training", tasks)
    write_folder(tmp_path / "arc/evaluation", random_tasks(2, 2))
    write_folder(tmp_path / "more", random_tasks(1, 3))
    card = build(ArcBuild(output_dir=tmp_path / "set", folders=(tmp_path / "arc", tmp_path / "more"), num_aug=2))
    assert {name: subset["tasks"] for name, subset in card["subsets"].items()} == {
        "evaluation": 2,
        "training": 3,
        "more": 1,
    }
    assert read_task(tmp_path / "arc/training/1000.json").to_json() == tasks["1000"]


def test_copies_beside_tasks_are_passed_over_and_shared_names_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    tasks = {"1000": random_tasks(1, 1)["1000"], "2000": random_tasks(1, 2)["2000"]}
    write_folder(tmp_path / "arc/training", tasks)
    write_folder(tmp_path / "arc/more", {"1000": tasks["1000"], "2000": tasks["1000"]})  # one as it is, one another
    write_folder(tmp_path / "arc/evaluation", random_tasks(2, 3))
    write_folder(tmp_path / "arc/.ipynb_checkpoints", tasks)
    write_folder(tmp_path / "arc/__MACOSX", tasks)
    (tmp_path / "arc/training/._1000.json").write_bytes(b"\0\5\x16\7")
    words = ["--dataset-dirs=~/arc", "--num-aug", "1", "--output-dir=~/set"]
    assert main(words) == 0
    assert (
        "1 names stand for different tasks, which share their puzzle embeddings (first: 2000)"
        in capsys.readouterr().out
    )
    assert list(json.loads((tmp_path / "set/card.json").read_text())["subsets"]) == ["evaluation", "more", "training"]

    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)  # a page without space kills the process that writes it
    assert main([*words, "--overwrite"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/set: No space left on device\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.lock", "arc", "set"]


def test_the_reason_of_a_failed_write_is_kept(tmp_path):
    with files_of_at_most(4096), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        save_array(tmp_path / "a.npy", np.zeros(9000, dtype=np.uint8))
    save_array(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert np.load(tmp_path / "a.npy").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_task_in_memory(tmp_path):
    task = read_task(write_folder(tmp_path, {"one": random_tasks(1, 4)["4000"]}) / "one.json")
    few = ArcBuild(output_dir=tmp_path / "set", test_sets=("asked",), num_aug=3, canvas=8, workers=1)
    build_subsets(few, lambda: [Subset("asked", (task,), ())])
    assert load_split(tmp_path / "set", "test").num_puzzles == 4
    assert load_split(tmp_path / "set", "test").inputs.shape[1] == 64


def test_tests_without_solutions(tmp_path, capsys):
    prefix = write_bundle(tmp_path, "evaluation", random_tasks(3, 2), solutions=False)
    write_bundle(tmp_path, "training", random_tasks(3, 1), solutions=False)
    words = ["--input-file-prefix", prefix, "--subsets", *SUBSETS, "--num-aug", "2"]
    assert main([*words, "--output-dir", str(tmp_path / "set")]) == 0
    output = capsys.readouterr().out
    assert "test tasks without solutions have a 1x1 grid as label" in output
    assert "left out:" in output
    puzzles = json.loads((tmp_path / "set/test_puzzles.json").read_text())
    assert all("output" not in test for task in puzzles.values() for test in task["test"])
    labels = load_split(tmp_path / "set", "test").labels
    assert (labels[:, :3] == [2, 1, 0]).all()


def test_pairs_beyond_a_small_canvas_are_left_out_and_counted(bundles, tmp_path, capsys):
    words = ["--input-file-prefix", bundles, "--subsets", *SUBSETS, "--num-aug", "2", "--canvas", "6"]
    assert main([*words, "--output-dir", str(tmp_path / "set")]) == 0
    output = capsys.readouterr().out
    assert "left out: 3 pairs that do not fit 6x6" in output
    assert "left out: 1 tasks without a demonstration that fits 6x6" in output
    assert load_split(tmp_path / "set", "train").inputs.shape[1] == 36
    assert main([*words[:-1], "1", "--output-dir", str(tmp_path / "none")]) == 2
    assert "--canvas 1: no" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def grid(rows: int = 2, columns: int = 2) -> list[list[int]]:
    return [[1] * columns for _ in range(rows)]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"train": [], "test": [{"input": grid(), "output": grid()}]}, "task bad has no demonstrations"),
        ({"train": [{"input": grid(), "output": grid()}], "test": []}, "task bad has no tests"),
        ({"train": [{"input": grid()}], "test": [{"input": grid()}]}, "task bad, train pair 0 has no output"),
        (
            {"train": [{"input": [[1, 2], [3]], "output": grid()}]},
            "row 1 has 1 cells, row 0 has 2: a grid is a rectangle",
        ),
        ({"train": [{"input": [[1, 10]], "output": grid()}]}, "row 0 holds 10, expected whole numbers 0 to 9"),
        ({"train": [{"input": [[1, -1]], "output": grid()}]}, "row 0 holds -1"),
        ({"train": [{"input": [[1, True]], "output": grid()}]}, "row 0 holds True"),
        ({"train": [{"input": [[0.5]], "output": grid()}]}, "row 0 holds 0.5"),
        ({"train": [{"input": grid(31, 31), "output": grid()}]}, "31x31 cells, expected at most 30x30"),
        ({"train": [{"input": grid(), "output": []}]}, "task bad, train pair 0, output: expected a grid"),
        ({"train": [5]}, 'train pair 0: expected {"input": grid, "output": grid}, got 5'),
        ({"train": 5}, 'expected {"train": [pairs], "test": [pairs]}'),
    ],
)
def test_a_bad_task_is_one_line_with_file_and_task(tmp_path, capsys, task, words):
    task = {"test": [{"input": grid(), "output": grid()}], **task}
    write_folder(tmp_path / "in/evaluation", {"bad": task, "good": random_tasks(1, 1)["1000"]})
    assert main(["--dataset-dirs", str(tmp_path / "in"), "--output-dir", str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {tmp_path}/in/evaluation/bad.json: task bad")
    assert words in error
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["in"]


def test_malformed_files_and_flags_are_one_line(bundles, tmp_path, capsys):
    def refusal(*words: str) -> str:
        assert main([*words, "--output-dir", str(tmp_path / "set")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    source = ["--input-file-prefix", bundles, "--subsets"]
    assert "did you mean 'evaluation'" in refusal(*source, "evaluatoin")
    assert "--test-set-name evaluation is not one of the subsets" in refusal(*source, "training")
    assert "--test-set-name none" in refusal(*source, *SUBSETS, "--test-set-name", "none")
    assert "--test-set-name2 none" in refusal(*source, *SUBSETS, "--test-set-name2", "none")
    assert "--subsets training is given twice" in refusal(*source, "training", *SUBSETS)
    assert "--puzzle-identifiers-start must be 1 to" in refusal(
        *source, *SUBSETS, "--puzzle-identifiers-start", "9" * 9
    )
    assert "give --input-file-prefix (bundles), --dataset-dirs" in refusal()
    assert "needs --subsets" in refusal(*source[:2])
    assert "--num-aug must be 0 to" in refusal(*source, *SUBSETS, "--num-aug", "-1")
    assert "--canvas must be 1 to 30, got 31" in refusal(*source, *SUBSETS, "--canvas", "31")
    assert "there is no such folder" in refusal("--dataset-dirs", str(tmp_path / "absent"))
    (tmp_path / "bad").mkdir()
    assert "no JSON files" in refusal("--dataset-dirs", str(tmp_path / "bad"))
    write_folder(tmp_path / "bad/deep/data/evaluation", random_tasks(1, 2))
    assert f"but in {tmp_path}/bad/deep/data/evaluation: give {tmp_path}/bad/deep/data" in refusal(
        "--dataset-dirs", str(tmp_path / "bad")
    )
    (tmp_path / "bad/x.json").write_text('{"train": [')
    assert f"error: {tmp_path}/bad/x.json is not JSON" in refusal("--dataset-dirs", str(tmp_path / "bad"))
    prefix = write_bundle(tmp_path / "b", "evaluation", random_tasks(2, 2))
    (tmp_path / "b/t_evaluation_solutions.json").write_text('{"2000": []}')
    assert "t_evaluation_solutions.json: task 2001: its solutions are missing" in refusal(
        "--input-file-prefix", prefix, "--subsets", "evaluation"
    )
    assert f"use --input-file-prefix {tmp_path}/b/t" in refusal("--dataset-dirs", str(tmp_path / "b"))
    (tmp_path / "bad/x.json").write_text('{"train": [1], "train": [], "test": []}')
    assert "bad/x.json: 'train' appears twice" in refusal("--dataset-dirs", str(tmp_path / "bad"))
    assert main([*source, *SUBSETS, "--output-dir", str(tmp_path / "bad/x.json/set")]) == 2
    error = capsys.readouterr().err
    assert "x.json/set cannot be built there" in error
    assert "make the folder writable, or build it in another one" in error  # a launch has no --output-dir


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda solutions: {**solutions, "2000": [[[11]]] * len(solutions["2000"])},
            "task 2000, solution 0: row 0 holds 11",
        ),
        (lambda solutions: {**solutions, "2000": [[[1]]] * 9}, "solutions, one for each test, got 9"),
        (lambda solutions: {**solutions, "zzz": [[[1]]]}, "task zzz is not in"),
    ],
)
def test_bad_solutions_are_blamed_on_their_file(tmp_path, capsys, change, words):
    prefix = write_bundle(tmp_path, "evaluation", random_tasks(2, 2))
    answers = Path(f"{prefix}_evaluation_solutions.json")
    answers.write_text(json.dumps(change(json.loads(answers.read_text()))))
    assert main(["--input-file-prefix", prefix, "--subsets", "evaluation", "--output-dir", str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {answers}: ")
    assert words in error


def test_a_test_set_has_one_task_of_a_name(bundles, tmp_path):
    write_folder(tmp_path / "a/evaluation", random_tasks(2, 1))
    write_folder(tmp_path / "b/evaluation", random_tasks(2, 2))
    twice = ArcBuild(output_dir=tmp_path / "set", folders=(tmp_path / "a", tmp_path / "b", tmp_path / "a"), num_aug=1)
    with pytest.raises(UsageError, match="task 1000 is in"):
        build(twice)


def test_generated_tasks_do_not_get_the_name_of_published_ones(bundles, tmp_path):
    with pytest.raises(UsageError, match="from no published collection"):
        build(plan(bundles, tmp_path / "arc1concept-aug-1000"))


def test_a_build_that_is_interrupted_leaves_nothing_that_loads(bundles, tmp_path, monkeypatch):
    def stop(source, files, first) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "_fill", stop)
    root = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        build(plan(bundles, root))
    assert [path.name for path in tmp_path.iterdir()] == [".set.lock"]
    monkeypatch.undo()
    leftover = tmp_path / ".set.tmp-1-0"  # what a kill -9 leaves: it has another name, and the next build clears it
    shutil.copytree(Path(bundles).parent, leftover)
    build(plan(bundles, root))
    assert not leftover.exists()
    assert load_split(root, "train").num_groups == 10


def test_a_worker_that_dies_ends_the_build(bundles, tmp_path, monkeypatch):
    def die(source, files, first) -> None:
        raise SystemExit(9)

    monkeypatch.setattr(build_module, "_fill", die)
    monkeypatch.setattr(build_module, "BLOCK", 50)
    with pytest.raises(RunFailure, match="a build worker died"):
        build(plan(bundles, tmp_path / "set", workers=2))
    assert not (tmp_path / "set").exists()


def test_the_leakage_report(tmp_path):
    tasks, held_out = random_tasks(3, 1), random_tasks(4, 2)
    asked = held_out["2000"]["test"][0]
    turned = {key: np.rot90(RENAMED[np.array(asked[key])]).tolist() for key in asked}
    tasks["1000"]["train"][0] = turned
    tasks["2001"] = held_out["2001"]
    tasks["1002"]["train"][0]["input"] = held_out["2003"]["test"][0]["input"]
    prefix = write_bundle(tmp_path, "training", tasks)
    write_bundle(tmp_path, "evaluation", held_out)
    card = build(plan(prefix, tmp_path / "set"))
    report = json.loads((tmp_path / "set/leakage.json").read_text())
    assert not report["empty"]
    assert report["ids"] == {"2001": ["training"]}
    leaks = {(test["task"], test["test"]): (test["relation"], test["in"]) for test in report["tests"]}
    assert leaks[("2000", 0)] == ("pair_transformed", ["training/1000"])
    assert leaks[("2001", 0)] == ("pair", ["training/2001"])
    assert leaks[("2003", 0)] == ("input", ["training/1002"])
    assert card["leakage"]["empty"] is False
    assert card["leakage"]["ids"] == 1
    write_bundle(tmp_path, "large", random_tasks(3, 6, least=5))
    clean = build(plan(prefix, tmp_path / "alone", subsets=("large",), test_sets=("large",)))
    assert clean["leakage"]["empty"] is True


def test_the_leakage_report_is_of_what_fits_the_canvas(tmp_path):
    large = {"input": grid(7, 7), "output": grid(7, 7)}
    small = [{"input": [[colour] * width], "output": grid()} for width, colour in ((1, 1), (2, 0), (3, 5))]
    write_bundle(tmp_path, "evaluation", {"asked": {"train": small[:1], "test": [large, small[1]]}})
    prefix = write_bundle(tmp_path, "training", {"trained": {"train": small[2:], "test": [large]}})
    for canvas, tests, leaks in ((7, 2, 1), (6, 1, 0)):
        card = build(plan(prefix, tmp_path / f"{canvas}", canvas=canvas, num_aug=0))
        assert (card["leakage"]["held_out_tests"], card["leakage"]["pair"]) == (tests, leaks)
        assert card["leakage"]["empty"] is (not leaks)


@pytest.mark.parametrize(
    ("array", "change", "words"),
    [
        ("cells", lambda a: a + 10, "cells.npy: a colour is beyond 9"),
        ("cells", lambda a: a[:-1], "the shapes give a different number of cells"),
        ("shapes", lambda a: a * 0, "grids must be 1x1 to 30x30"),
        ("shapes", lambda a: a[:-1], "expected two grids a pair"),
        ("augmentations", lambda a: a[:-1], "expected shape"),
        ("augmentations", lambda a: a | 0x80, "a transform is beyond 7"),
        ("augmentations", lambda a: a & 0xF0, "not a permutation of the colours"),
        ("offsets", lambda a: a + 29, "an example lies beyond the canvas of 30x30"),
        ("offsets", lambda a: a[1:], "offsets.npy: expected shape"),
        ("offsets", lambda a: a.astype(np.int64), "expected bytes in all four arrays"),
        ("puzzle_indices", lambda a: a[[*range(len(a) - 2), -1, -1]], "differ in their number of examples"),
    ],
)
def test_damaged_compact_files_are_named(built, tmp_path, array, change, words):
    root = tmp_path / "set"
    shutil.copytree(built["compact"], root)
    path = root / f"train/all__{array}.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(UsageError, match=words.replace(".", r"\.")) as caught:
        load_splits([root], "train")
    assert str(caught.value).startswith(f"{root}/train/all__")


def test_an_unknown_form_is_refused(built, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(built["compact"], root)
    path = root / "train/dataset.json"
    path.write_text(path.read_text().replace('"compact"', '"zipped"'))
    with pytest.raises(UsageError, match="storage must be arrays or compact, got 'zipped'"):
        load_splits([root], "train")
