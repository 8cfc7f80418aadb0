"""Building: properties of the files, independence of workers, the public CSV, and failures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset.build_sudoku_dataset import main
from dataset.format import load_split
from dataset.sudoku import build as build_module
from dataset.sudoku.augment import apply_transforms, augment, draw_transforms
from dataset.sudoku.build import SudokuBuild, build, overlap
from dataset.sudoku.generate import Recipe, generate
from dataset.sudoku.grid import geometry, valid_solutions
from dataset.sudoku.public_csv import read_csv
from dataset.sudoku.solve import random_solution, solve
from dataset.writing import content_hash
from engine.io import UsageError


def small(folder: Path, **changes) -> SudokuBuild:
    values = {"size": 4, "num_train": 30, "num_test": 8, "num_aug": 3, "workers": 1, "seed": 5}
    return SudokuBuild(output_dir=folder, **{**values, **changes})


def write_csv(path: Path, size: int, count: int, seed: int = 0, blanks: tuple[int, int] = (6, 8)) -> list:
    puzzles = generate(Recipe(seed=seed, size=size, split="train", blanks=blanks), count)
    lines = ["source,question,answer,rating"]
    for number, puzzle in enumerate(puzzles):
        question = "".join(str(d) if d else "." for d in puzzle.question)
        lines.append(f"test,{question},{''.join(map(str, puzzle.answer))},{number % 5}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return puzzles


@pytest.mark.parametrize(("size", "num_aug"), [(4, 5), (6, 3), (9, 2)])
def test_files_of_a_generated_set(tmp_path, size, num_aug):
    card = build(small(tmp_path / "set", size=size, num_train=12, num_test=5, num_aug=num_aug))
    geo = geometry(size)
    for split, per_group, groups in (("train", 1 + num_aug, 12), ("test", 1, 5)):
        data = load_split(tmp_path / "set", split)
        assert data.inputs.dtype == data.labels.dtype == np.uint8
        assert data.metadata.vocab_size == size + 2
        assert data.metadata.seq_len == size * size
        assert data.metadata.data_mode == "embedding"
        assert data.num_groups == data.metadata.total_groups == groups
        assert (np.diff(data.group_indices) == per_group).all()
        assert data.num_examples == data.num_puzzles == data.metadata.total_puzzles == groups * per_group
        assert (data.puzzle_identifiers == 0).all()
        assert data.metadata.num_puzzle_identifiers == 1
        questions, answers = data.inputs.astype(int) - 1, data.labels.astype(int) - 1
        assert valid_solutions(answers, geo).all()
        for question, answer in zip(questions.tolist(), answers.tolist(), strict=True):
            assert solve(question, geo).solutions == [tuple(answer)]
    assert card["counts"]["train"] == {
        "groups": 12,
        "puzzles": 12 * (1 + num_aug),
        "examples": 12 * (1 + num_aug),
    }
    assert card["source"] == "generated"
    assert sum(card["difficulty"]["train"].values()) == 12
    assert json.loads((tmp_path / "set/identifiers.json").read_text()) == ["<blank>"]
    assert json.loads((tmp_path / "set/card.json").read_text())["content_hash"] == content_hash(tmp_path / "set")


def test_workers_do_not_change_the_data_and_the_seed_does(tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "PUZZLES_PER_WORKER", 1)
    plan = {"size": 6, "num_train": 150, "num_test": 10, "num_aug": 200}
    hashes = [build(small(tmp_path / f"w{workers}", workers=workers, **plan))["content_hash"] for workers in (1, 3)]
    assert hashes[0] == hashes[1]
    assert build(small(tmp_path / "other", seed=6, **plan))["content_hash"] != hashes[0]


@pytest.mark.parametrize("seed", range(3))
def test_no_test_solution_is_a_training_solution_even_after_augmentation(tmp_path, seed):
    plan = small(tmp_path / "set", num_train=100, num_test=60, num_aug=20, seed=seed)
    card = build(plan)
    train = {row.tobytes() for row in load_split(tmp_path / "set", "train").labels}
    test = {row.tobytes() for row in load_split(tmp_path / "set", "test").labels}
    assert not train & test
    assert card["test_puzzles_with_a_training_solution"] == 0
    # the copies do reach most of the 288 boards, so the exclusion had something to do
    assert len(train) > 200 > 20 < len(test)


def test_overlap_counts_test_puzzles(tmp_path):
    build(small(tmp_path / "set", num_aug=0))
    train = np.load(tmp_path / "set/train/all__labels.npy")
    test = np.load(tmp_path / "set/test/all__labels.npy")
    test[:3] = train[0]
    np.save(tmp_path / "set/test/all__labels.npy", test)
    assert overlap(tmp_path / "set", "labels") == 3


@pytest.mark.parametrize("size", [4, 6, 9])
def test_augmentation_is_a_symmetry(size):
    geo, rng = geometry(size), np.random.default_rng(0)
    answer = np.array(random_solution(geo, rng), dtype=np.uint8)
    question = np.where(rng.random(geo.cells) < 0.5, answer, 0).astype(np.uint8)
    questions, answers = augment(question, answer, 200, geo, rng)
    assert (questions[0] == question).all()
    assert (answers[0] == answer).all()
    assert valid_solutions(answers, geo).all()
    assert ((questions == 0) | (questions == answers)).all()
    assert ((questions == 0).sum(axis=1) == (question == 0).sum()).all()
    assert len({a.tobytes() for a in answers}) > 50
    # cells move, not only digits: where the blanks lie differs
    assert len({(q == 0).tobytes() for q in questions}) > 5
    cells, digits = draw_transforms(50, geo, rng)
    assert (np.sort(cells, axis=1) == np.arange(geo.cells)).all()
    assert (np.sort(digits, axis=1) == np.arange(size + 1)).all()
    rows = cells.reshape(50, size, size)
    transposed = rows[:, 0, 0] // size != rows[:, 0, 1] // size  # neighbours of a row came from one column
    assert transposed.any() == (size != 6)
    one = apply_transforms(question, cells[:1], digits[:1])[0]
    assert one.tolist() == [digits[0][question[c]] for c in cells[0]]


def test_csv_folder(tmp_path):
    puzzles = write_csv(tmp_path / "in/train.csv", 4, 40, seed=1)
    tests = write_csv(tmp_path / "in/test.csv", 4, 10, seed=2)
    card = build(small(tmp_path / "set", size=None, num_train=None, num_test=None, input=tmp_path / "in"))
    train, test = load_split(tmp_path / "set", "train"), load_split(tmp_path / "set", "test")
    assert [bytes(row - 1) for row in train.inputs[::4]] == [p.question for p in puzzles]
    assert [bytes(row - 1) for row in test.labels] == [p.answer for p in tests]
    assert card["source"] == "csv"
    assert card["difficulty"]["train"] == {str(r): 8 for r in range(5)}
    answers = {bytes(row - 1) for row in train.labels}
    assert card["test_puzzles_with_a_training_solution"] == sum(p.answer in answers for p in tests)


def test_csv_subsample_and_min_difficulty(tmp_path):
    puzzles = write_csv(tmp_path / "in/train.csv", 4, 40, seed=1)
    write_csv(tmp_path / "in/test.csv", 4, 10, seed=2)
    plan = {"size": None, "num_train": None, "num_test": None, "input": tmp_path / "in", "num_aug": 0}
    build(small(tmp_path / "set", subsample_size=7, min_difficulty=3, **plan))
    allowed = {p.question for n, p in enumerate(puzzles) if n % 5 >= 3}
    chosen = [bytes(row - 1) for row in load_split(tmp_path / "set", "train").inputs]
    assert len(set(chosen)) == 7
    assert set(chosen) <= allowed
    assert load_split(tmp_path / "set", "test").num_examples == 4
    again = build(small(tmp_path / "again", subsample_size=7, min_difficulty=3, **plan))
    assert again["content_hash"] == content_hash(tmp_path / "set")


def test_single_csv_is_split_by_solution(tmp_path):
    write_csv(tmp_path / "one.csv", 4, 200, seed=1)
    plan = small(tmp_path / "set", size=None, num_train=None, num_test=20, input=tmp_path / "one.csv")
    assert build(plan)["test_puzzles_with_a_training_solution"] == 0
    assert load_split(tmp_path / "set", "test").num_examples == 20


def bad_csv(tmp_path: Path, change) -> Path:
    path = tmp_path / "bad.csv"
    write_csv(path, 4, 12)
    lines = path.read_text().splitlines()
    fields = lines[7].split(",")
    change(fields)
    lines[7] = ",".join(fields)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.__setitem__(1, f[1][:-1]), "question has 15 cells, expected 16"),
        (lambda f: f.__setitem__(2, f[2] + "1"), "answer has 17 cells"),
        (lambda f: f.__setitem__(1, "x" + f[1][1:]), "question has a character other"),
        (lambda f: f.__setitem__(1, "5" + f[1][1:]), "question has a character other"),
        (lambda f: f.__setitem__(2, "." + f[2][1:]), "answer has a character other"),
        (lambda f: f.__setitem__(2, f[2][4:] + f[2][:4]), "answer contradicts a given"),
        (lambda f: (f.__setitem__(1, "." * 16), f.__setitem__(2, "1" * 16)), "not a Sudoku solution"),
        (lambda f: f.__setitem__(3, "easy"), "rating must be a number"),
        (lambda f: f.append("more"), "expected 4 columns, found 5"),
    ],
)
def test_bad_csv_rows_are_named_by_file_and_line(tmp_path, change, words):
    path = bad_csv(tmp_path, change)
    with pytest.raises(UsageError) as caught:
        read_csv(path)
    assert str(caught.value).startswith(f"{path}:8: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_csv_without_columns_or_rows(tmp_path):
    (tmp_path / "a.csv").write_text("frage,answer,rating\n")
    with pytest.raises(UsageError, match="expected a header with the columns question,answer,rating"):
        read_csv(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("source,question,answer,rating\n")
    with pytest.raises(UsageError, match="holds no puzzle"):
        read_csv(tmp_path / "b.csv")
    with pytest.raises(UsageError, match="does not exist"):
        read_csv(tmp_path / "c.csv")


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def stop(root, array):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "overlap", stop)
    with pytest.raises(KeyboardInterrupt):
        build(small(tmp_path / "set"))
    assert [p.name for p in tmp_path.iterdir()] == [".set.lock"]


def test_leftovers_of_a_killed_build_are_cleared(tmp_path):
    for name in (".set.tmp-1-0", ".settee.tmp-1-0"):
        (tmp_path / name / "train").mkdir(parents=True)
    build(small(tmp_path / "set"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".set.lock", ".settee.tmp-1-0", "set"]


def test_existing_folder_is_refused_unless_overwrite(tmp_path):
    first = build(small(tmp_path / "set"))["content_hash"]
    with pytest.raises(UsageError, match="--overwrite"):
        build(small(tmp_path / "set", seed=9))
    assert content_hash(tmp_path / "set") == first
    second = build(small(tmp_path / "set", seed=9, overwrite=True))["content_hash"]
    assert content_hash(tmp_path / "set") == second != first
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="not a data set"):
        build(small(tmp_path / "precious", overwrite=True))
    with pytest.raises(UsageError, match=r"thesis\.tex is not a folder"):
        build(small(tmp_path / "precious/thesis.tex", overwrite=True))
    assert (tmp_path / "precious/thesis.tex").read_text() == "x"


@pytest.mark.parametrize("own", ["notes.txt", "train/cat.jpg", "test/answers/mine.csv"])
def test_overwrite_deletes_no_file_that_is_not_of_a_data_set(tmp_path, own):
    build(small(tmp_path / "set"))
    (tmp_path / "set" / own).parent.mkdir(exist_ok=True)
    (tmp_path / "set" / own).write_text("mine")
    with pytest.raises(
        UsageError, match=rf"holds {own[:12]}\S*, which is not part of a data set.*another --output-dir"
    ):
        build(small(tmp_path / "set", overwrite=True))
    assert (tmp_path / "set" / own).read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-train", "0"], "--num-train must be at least 1"),
        (["--size", "5"], "--size"),
        (["--blanks", "9", "3"], "--blanks 9 3"),
        (["--num-trian", "3"], "--num-trian"),
        (["--input", "/nowhere"], "/nowhere does not exist"),
        (["--input", "x", "--num-train", "3"], "--subsample-size"),
        (["--input", "x", "--download"], "exclude each other"),
        (["--num-train", "3", "--subsample-size", "3"], "give one"),
        (["--size", "4", "--blanks", "1", "1", "--num-test", "1200"], "different test puzzles"),
    ],
)
def test_bad_commands_exit_2_with_one_line(tmp_path, capsys, flags, words):
    assert main([*flags, "--output-dir", str(tmp_path / "set")]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert words in output.err
    assert not (tmp_path / "set").exists()


def test_the_public_command_generates_without_input(tmp_path, capsys):
    flags = ["--subsample_size", "6", "--num-aug", "4", "--num_test", "2", "--size", "4"]
    assert main([*flags, "--output-dir", str(tmp_path / "set")]) == 0
    output = capsys.readouterr().out
    assert "not Sudoku-Extreme" in output
    assert "6 groups, 30 examples" in output
    assert content_hash(tmp_path / "set")[:16] in output


def test_download_without_the_library_is_a_clear_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["--download", "--output-dir", str(tmp_path / "set")]) == 2
    assert "--input" in capsys.readouterr().err
