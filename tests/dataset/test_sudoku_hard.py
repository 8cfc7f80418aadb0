"""Hard puzzles: the search over many boards against the one over a single board, classes under symmetry, the set."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from dataset.build_sudoku_dataset import main
from dataset.format import load_split
from dataset.sudoku import minimal as minimal_module
from dataset.sudoku.augment import apply_transforms, draw_transforms
from dataset.sudoku.build import SudokuBuild, build
from dataset.sudoku.canonical import canonical, classes
from dataset.sudoku.generate import Recipe, generate
from dataset.sudoku.grid import all_grids, geometry, valid_solutions
from dataset.sudoku.many import dig, rate
from dataset.sudoku.solve import random_solution, solve
from engine.io import UsageError
from tests.conftest import ROOT

LISTS = ROOT.parent / "shared/data/hard-sudoku"


def solutions(size: int, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([random_solution(geometry(size), rng) for _ in range(count)], dtype=np.uint8)


@pytest.mark.parametrize(("size", "blanks"), [(4, 12), (6, 27), (9, 48)])
def test_many_boards_are_rated_as_one_at_a_time(size, blanks):
    geo, rng = geometry(size), np.random.default_rng(size)
    questions = solutions(size, 60)
    for question in questions:
        question[rng.permutation(geo.cells)[:blanks]] = 0
    rated = rate(questions, geo)
    alone = [solve(question.tolist(), geo, limit=100_000) for question in questions]
    assert rated.solutions.tolist() == [len(one.solutions) for one in alone]
    for ours, one in zip(rated.guesses_undone.tolist(), alone, strict=True):
        assert ours == one.guesses_undone or not one.unique


def test_a_cell_that_alone_is_left_for_two_digits_is_left_to_the_search():
    """In the second row three cells are left for 4 and 9 and one for 7 and 8. Docs/decisions/0009 has this case."""
    text = "72854.361.3.2.1.5.51........4.....2637.98.145...1...93.9.6....4.6..7.5........6.."
    puzzle = [0 if character == "." else int(character) for character in text]
    alone, rated = solve(puzzle, geometry(9)), rate(np.array([puzzle]), geometry(9))
    assert (alone.solutions, alone.guesses_undone) == ([], 2)
    assert (rated.solutions.tolist(), rated.guesses_undone.tolist()) == ([0], [2])


def test_no_given_of_a_minimal_puzzle_can_go():
    geo, answers = geometry(9), solutions(9, 3)
    rng = np.random.default_rng(1)
    order = rng.permuted(np.tile(np.arange(81), (3, 1)), axis=1)
    questions = dig(answers, order, geo)
    for question, answer in zip(questions, answers, strict=True):
        assert solve(question.tolist(), geo).solutions == [tuple(answer.tolist())]
        for cell in np.flatnonzero(question):
            less = question.copy()
            less[cell] = 0
            assert not solve(less.tolist(), geo).unique


def test_symmetric_boards_have_one_canonical_form_and_others_have_not():
    for size, count in ((4, 3), (6, 3), (9, 3)):
        geo, rng = geometry(size), np.random.default_rng(size)
        boards = solutions(size, count)
        forms = canonical(boards, geo)
        assert valid_solutions(forms, geo).all()
        assert (canonical(forms, geo) == forms).all()
        cells, digits = draw_transforms(4, geo, rng)
        for board, form in zip(boards, forms, strict=True):
            assert (canonical(apply_transforms(board, cells, digits), geo) == form).all()
    assert len(set(classes(boards, geo))) == count
    assert len(set(classes(all_grids(4), geometry(4)))) == 2, "the 288 boards of 4x4 are two up to symmetry"


def test_a_hard_set(tmp_path, monkeypatch):
    monkeypatch.setattr(minimal_module, "SOLUTIONS", 12)
    cards = []
    for workers in (1, 2):
        plan = SudokuBuild(
            output_dir=tmp_path / str(workers), num_train=2, num_test=3, num_aug=2, min_difficulty=5, workers=workers
        )
        cards.append(build(plan))
    assert cards[0]["content_hash"] == cards[1]["content_hash"]
    geo, every = geometry(9), []
    for split, count in (("train", 2), ("test", 3)):
        data = load_split(tmp_path / "1", split)
        each = slice(None, None, 3 if split == "train" else 1)
        questions, answers = data.inputs[each].astype(int) - 1, data.labels[each] - np.uint8(1)
        difficulty = [solve(question.tolist(), geo).guesses_undone for question in questions]
        assert len(difficulty) == count
        assert min(difficulty) >= 5
        histogram = cards[0]["difficulty"][split]
        assert histogram == {str(value): difficulty.count(value) for value in sorted(set(difficulty))}
        every += classes(answers, geo)
    assert len(set(every)) == 5
    assert "minimal" in cards[0]


def test_a_difficulty_out_of_reach_is_said(monkeypatch):
    monkeypatch.setattr(minimal_module, "SOLUTIONS", 2)
    monkeypatch.setattr(minimal_module, "FRUITLESS", 1)
    with pytest.raises(UsageError, match="lower --min-difficulty"):
        minimal_module.minimal(0, 9, {"test": 1}, least=10_000)


def test_a_second_file_is_tested_on_and_leaves_nothing_symmetric_to_train_on(tmp_path, capsys):
    puzzles = generate(Recipe(seed=0, size=9, split="train", blanks=(30, 35)), 12)
    cells, digits = draw_transforms(1, geometry(9), np.random.default_rng(0))

    def text(board: bytes) -> str:
        return "".join(map(str, board))

    def turned(board: bytes) -> str:
        return text(apply_transforms(np.frombuffer(board, dtype=np.uint8), cells, digits)[0].tobytes())

    rows = [f"{text(p.question)},{text(p.answer)}" for p in puzzles]
    (tmp_path / "a.csv").write_text("question,answer\n" + "\n".join(rows) + "\n")
    other = [f"{turned(p.question)},{turned(p.answer)}" for p in puzzles[:2]]
    (tmp_path / "b.csv").write_text("question,answer\n" + "\n".join(other) + "\n")
    command = ["--input", str(tmp_path / "a.csv"), "--num-test", "3", "--output-dir", str(tmp_path / "set")]
    assert main([*command, "--test-input", str(tmp_path / "b.csv")]) == 0
    assert "test 5 puzzles" in capsys.readouterr().out
    train, test = (load_split(tmp_path / "set", split).labels - np.uint8(1) for split in ("train", "test"))
    assert not set(classes(train, geometry(9))) & set(classes(test, geometry(9)))
    assert len(train) == 9
    assert main(["--test-input", str(tmp_path / "b.csv"), "--output-dir", str(tmp_path / "other")]) == 2
    assert "--test-input is for a single CSV" in capsys.readouterr().err
    card = json.loads((tmp_path / "set/card.json").read_text())
    assert card["rows_read"] == {"train": 12, "test": 14}
    assert card["test_input"] == str(tmp_path / "b.csv")
    for second, words in (
        (tmp_path, "is not a file: --test-input takes a CSV file\n"),
        (tmp_path / "a.csv", "is the file of --input"),
    ):
        assert main([*command[:-1], str(tmp_path / "no"), "--test-input", str(second)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.skipif(not LISTS.exists(), reason="the public lists are not beside the repository")
def test_the_ratings_of_the_public_lists_are_ours():
    for name, count in (("magictour_top1465.csv", 150), ("forum_hardest_1106.csv", 20)):
        with open(LISTS / name, newline="") as stream:
            rows = list(csv.DictReader(stream))[:count]
        questions = np.array([[int(c) if c.isdigit() else 0 for c in row["question"]] for row in rows])
        rated = rate(questions, geometry(9))
        assert (rated.solutions == 1).all()
        assert rated.guesses_undone.tolist() == [int(row["rating"]) for row in rows]
