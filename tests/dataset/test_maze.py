"""Mazes: shortest paths against a plain search, the generator's promises, the published CSV, and bad files."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest

from dataset.build_maze_dataset import main
from dataset.format import load_split
from dataset.maze import generate
from dataset.maze.build import usual_min_path
from dataset.maze.generate import canonical, symmetric_copies
from dataset.maze.paths import CHARSET, FREE, GOAL, PATH, START, WALL, draw_shortest, judge, path_lengths
from dataset.maze.public_csv import read_csv
from dataset.writing import describe


def grid(*rows: str) -> np.ndarray:
    return np.array([[CHARSET.index(sign) + 1 for sign in row] for row in rows], dtype=np.uint8)


def shortest(maze: np.ndarray) -> int:
    """Steps from start to goal by a queue of cells, -1 where there is no way."""
    start, goal = (tuple(np.argwhere(maze == token)[0].tolist()) for token in (START, GOAL))
    steps, queue = {start: 0}, deque([start])
    while queue:
        row, column = queue.popleft()
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            inside = 0 <= cell[0] < len(maze) and 0 <= cell[1] < len(maze)
            if inside and maze[cell] != WALL and cell not in steps:
                steps[cell] = steps[row, column] + 1
                queue.append(cell)
    return steps.get(goal, -1)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("maze") / "set"
    flags = ["--size", "9", "--num-train", "20", "--num-test", "8", "--loops", "0.3", "--aug", "--csv"]
    assert main([*flags, "--output-dir", str(root)]) == 0
    return root


def test_lengths_and_drawn_paths_equal_a_plain_search():
    rng = np.random.default_rng(3)
    mazes = rng.choice(np.array([WALL, FREE], dtype=np.uint8), p=[0.35, 0.65], size=(60, 7, 7))
    for maze in mazes:
        cells = rng.choice(49, 2, replace=False)
        maze.reshape(-1)[cells] = START, GOAL
    lengths = [shortest(maze) for maze in mazes]
    assert path_lengths(mazes).tolist() == lengths
    assert -1 in lengths
    assert max(lengths) > 5
    for maze, length in zip(mazes, lengths, strict=True):
        if length == -1:
            with pytest.raises(ValueError, match="cannot be reached"):
                draw_shortest(maze)
            continue
        answer = draw_shortest(maze)
        assert (answer == PATH).sum() == length - 1
        assert judge(maze[None], answer[None]).shortest.all()


def test_what_an_answer_is_worth():
    maze = grid("S    ", " ### ", "    G", " # # ", "     ")
    cases = {
        "reference": (grid("S    ", "o### ", "ooooG", " # # ", "     "), True, True),
        "another shortest": (grid("Soooo", " ###o", "    G", " # # ", "     "), True, True),
        "a detour": (grid("S    ", "o### ", "o   G", "o# #o", "ooooo"), True, False),
        "a stray cell": (grid("S    ", "o### ", "ooooG", " # # ", "o    "), False, False),
        "a gap": (grid("S    ", "o### ", "oo oG", " # # ", "     "), False, False),
        "a short cut within": (grid("Soooo", "o###o", "ooooG", " # # ", "     "), False, False),
        "through a wall": (grid("S    ", "o### ", "oo  G", " oo# ", "  ooo"), False, False),
        "a wall taken away": (grid("S    ", "o ## ", "ooooG", " # # ", "     "), False, False),
        "nothing": (maze, False, False),
    }
    verdict = judge(np.stack([maze] * len(cases)), np.stack([answer for answer, *_ in cases.values()]))
    assert dict(zip(cases, verdict.path.tolist(), strict=True)) == {name: path for name, (_, path, _) in cases.items()}
    assert dict(zip(cases, verdict.shortest.tolist(), strict=True)) == {
        name: best for name, (*_, best) in cases.items()
    }


def test_a_generated_set_holds_what_it_promises(built):
    train, test = (load_split(built, split) for split in ("train", "test"))
    assert (train.num_groups, train.num_examples, test.num_examples) == (20, 160, 8)
    assert train.metadata.vocab_size == 6
    card = describe(built)
    for split in (train, test):
        mazes, answers = (np.array(part).reshape(-1, 9, 9) for part in (split.inputs, split.labels))
        assert judge(mazes, answers).shortest.all()
        assert path_lengths(mazes).min() >= card["min_path"] == 10
        assert not (mazes == PATH).any()
    forms = np.array(train.inputs).reshape(20, 8, 9, 9)
    assert {canonical(maze) for maze in forms[0]} == {canonical(forms[0, 0])}
    keys = {canonical(group[0]) for group in forms}
    assert len(keys) == 20
    assert not keys & {canonical(maze) for maze in np.array(test.inputs).reshape(-1, 9, 9)}
    assert len({form.tobytes() for form in symmetric_copies(forms[0, 0])}) == 8


def test_the_same_flags_give_the_same_bytes_and_the_csv_reads_back(built, tmp_path):
    flags = ["--size", "9", "--num-train", "20", "--num-test", "8", "--loops", "0.3", "--aug"]
    for name, more in (("same", []), ("other", ["--seed", "1"])):
        assert main([*flags, *more, "--output-dir", str(tmp_path / name)]) == 0
    assert main(["--input", str(built), "--aug", "--output-dir", str(tmp_path / "read")]) == 0
    hashes = {name: describe(tmp_path / name)["content_hash"] for name in ("same", "other", "read")}
    assert hashes["same"] == hashes["read"] == describe(built)["content_hash"] != hashes["other"]
    header, first, *_ = (built / "test.csv").read_text().splitlines()
    assert header == "source,question,answer,rating"
    assert int(first.rpartition(",")[2]) == shortest(read_csv(built / "test.csv")[0][0])


def test_the_default_length_of_paths_is_reached_at_every_size():
    assert {side: usual_min_path(side) for side in (5, 8, 30, 31, 50, 200)} == {
        5: 3,
        8: 8,
        30: 110,
        31: 112,
        50: 160,
        200: 535,
    }
    for side in (5, 12, 20, 30, 40, 60, 80):
        recipe = generate.MazeRecipe(seed=0, side=side, min_path=usual_min_path(side), loops=0.05, split="test")
        maze, answer = generate.make_maze(recipe, 0)
        assert path_lengths(maze[None])[0] >= recipe.min_path
        assert judge(maze[None], answer[None]).shortest.all()


GOOD = "S  " + "## " + "G  "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("question,solution\n", "has no column answer"),
        ("source,question,answer,rating\n", "holds no maze"),
        (f"question,answer\n{GOOD},Soo##oGo\n", ":2: answer has 8 cells, expected 9"),
        (f"question,answer\n{GOOD},Soo##oGox\n", ":2: answer has the character 'x'"),
        (f"question,answer\n{GOOD},Soo##oGo \n", ":2: answer is not a path from S to G"),
        ("question,answer\nS  ## S  ,Soo##oGo \n", ":2: question needs exactly one S"),
        ("question,answer\nS  ## G,S  ## G\n", "7 cells, expected a square number"),
        ("question,answer,answer\n", "train.csv: 2 columns are called answer"),
        ("question,answer\n\0\n", "NUL bytes"),
    ],
)
def test_bad_files_are_one_line(tmp_path, capsys, text, expected):
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "test.csv").write_text(text)
    assert main(["--input", str(tmp_path), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "train.csv" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_separators_are_read_and_doubtful_answers_printed(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    rows = "S  " + "   " + "  G", "Soo" + "  o" + "  G", "So " + " oo" + "  G"
    assert len({rows[0], *rows}) == 3
    detour = "S G" + "   " + "   ", "S G" + "ooo" + "   "
    table = [" Question ; ANSWER", *(f"{question};{answer}" for question, answer in (rows[:2], rows[::2], detour))]
    for name in ("train", "test"):
        (tmp_path / f"in/{name}.csv").write_text("\n\n".join(table))
    monkeypatch.chdir(tmp_path / "in")
    assert main(["--input", ".", "--csv"]) == 0
    output = capsys.readouterr().out
    assert "built data/maze-in " in output
    for split in ("train", "test"):
        assert f"1 of 3 {split} answers are paths, but not shortest ones" in output
        assert f"1 {split} mazes repeat" in output
    (tmp_path / "in/data/maze-in").rename(tmp_path / "a,b")  # the tables of --csv are the data set's own
    assert (
        main(["--size", "5", "--num-train", "2", "--num-test", "2", "--csv", "--overwrite", "--output-dir", "../a,b"])
        == 0
    )
    assert main(["--input", "../a,b", "--output-dir", "../again"]) == 0
    assert describe(tmp_path / "again")["content_hash"] == describe(tmp_path / "a,b")["content_hash"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--size", "4"], "--size must be at least 5"),
        (["--size", "100000"], "--size must be at most 200 (40,000 tokens a maze), got 100000"),
        (["--size", "5", "--min-path", "24"], "): lower --min-path"),
        (["--size", "5", "--num-test", "5000", "--min-path", "6"], "ask for fewer"),
        (["--input", "nowhere"], "expected a folder"),
        (["--input", ".", "--size", "9"], "--size is for generated mazes"),
        (["--loops", "2"], "--loops must be in 0 to 1"),
        (["--subsample-size", "5"], "--subsample-size is for the mazes of a CSV"),
        (["--output-dir", "maze_30x30_hard"], "do not get its name"),
        (["--sise", "9"], "--size"),
    ],
)
def test_bad_flags_are_one_line(tmp_path, monkeypatch, capsys, flags, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "TRIES", 5)
    assert main(flags) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.rglob("dataset.json"))
