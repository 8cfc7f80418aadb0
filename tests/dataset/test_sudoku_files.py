"""Sudoku files as people keep them: dialects of CSV, lists, encodings, and puzzles that are not right."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from dataset.build_sudoku_dataset import main
from dataset.published import SUDOKU_EXTREME
from dataset.sudoku.generate import Puzzle, Recipe, generate
from dataset.sudoku.public_csv import read_csv
from engine.io import UsageError

PUZZLES = generate(Recipe(seed=1, size=4, split="train", blanks=(6, 8)), 12)
MANY = "1" + "." * 15  # one given: dozens of solutions


def text_of(puzzle: Puzzle, blank: str = ".") -> tuple[str, str]:
    question = "".join(str(digit) if digit else blank for digit in puzzle.question)
    return question, "".join(map(str, puzzle.answer))


def table(header: str, row: str, *, blank: str = ".", end: str = "\n") -> str:
    """`row` with {q}, {a} and {n} for every puzzle."""
    pairs = [text_of(puzzle, blank) for puzzle in PUZZLES]
    lines = ([header] if header else []) + [row.format(q=q, a=a, n=n) for n, (q, a) in enumerate(pairs)]
    return end.join(lines) + end


PLAIN = ("source,question,answer,rating", "x,{q},{a},{n}")
DIALECTS = {
    "plain": table(*PLAIN),
    "byte order mark": "\ufeff" + table("question,answer,rating", "{q},{a},{n}"),
    "byte order mark and quotes": "\ufeff" + table('"question","answer","rating"', '"{q}","{a}","{n}"'),
    "kaggle": table("quizzes,solutions", "{q},{a}", blank="0"),
    "kaggle, another": table("puzzle,solution", "{q},{a}", blank="0"),
    "kaggle, three million": table("id,puzzle,solution,clues,difficulty", "7,{q},{a},8,2.5"),
    "capitals": table("Puzzle,Solution", "{q},{a}"),
    "semicolon": table("puzzle;solution;rating", "{q};{a};2,5"),
    "excel's own line": "sep=;\n" + table("puzzle;solution", "{q};{a}"),
    "tabs": table("puzzle\tsolution", "{q}\t{a}"),
    "space after the comma": table("source, question, answer, rating", "x, {q} , {a}, {n}"),
    "quotes after comma and space": table("question, answer, rating", '"{q}", "{a}", {n}'),
    "windows": table(*PLAIN, end="\r\n"),
    "old mac": table(*PLAIN, end="\r"),
    "dashes": table(*PLAIN, blank="-"),
    "stars": table(*PLAIN, blank="*"),
    "empty lines": "\n\n" + table(*PLAIN) + "\n,,,\n",
    "list with solutions": table("", "{q},{a}"),
    "list with solutions and spaces": table("", "{q}  {a} "),
    "list": table("", "{q}"),
    "list with comments": "# hard ones\n\n" + table("", "{q}") + "# end\n",
    "list, windows, mark": "\ufeff" + table("", "{q}", end="\r\n"),
    "one column": table("puzzle", "{q}"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_same_puzzles_in_every_dialect(tmp_path: Path, dialect: str) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(DIALECTS[dialect].encode())
    boards = read_csv(file)
    assert [row.tobytes() for row in boards.questions] == [puzzle.question for puzzle in PUZZLES]
    assert [row.tobytes() for row in boards.answers] == [puzzle.answer for puzzle in PUZZLES]
    assert boards.rated == any(word in DIALECTS[dialect] for word in ("rating", "difficulty"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (table(*PLAIN).encode("utf-16"), "UTF-16 text"),
        (table(*PLAIN).encode("utf-16-le"), "NUL bytes"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04", "zip or Excel"),
        (b"", "holds no puzzle"),
        (b"\n\n# nothing\n", "holds no puzzle"),
        (b"frage,antwort\n1,2\n", "expected a header with the columns question,answer,rating"),
        (b"question,answer,question\n", "in.csv:1: 2 columns are called question: which one counts"),
        (b"12345\n", "or boards of 16, 36, 81 cells; found '12345'"),
        (f"puzzle\n{MANY}\n".encode(), r"in.csv:2: the puzzle has more than one solution"),
        (b"11..............\n", "in.csv:1: the puzzle has no solution"),
        (f"puzzle,solution,rating\n{'.' * 16},1234341221434321,nan\n".encode(), "in.csv:2: rating must be a number"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "in.csv").write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_csv(tmp_path / "in.csv")
    assert "\n" not in str(caught.value)


def test_a_difficulty_needs_ratings(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(DIALECTS["kaggle"])
    with pytest.raises(UsageError, match="has no ratings"):
        read_csv(tmp_path / "in.csv", min_difficulty=1)


def built(tmp_path: Path, content: str, *flags: str) -> tuple[int, dict]:
    (tmp_path / "in.csv").write_text(content)
    code = main(["--input", str(tmp_path / "in.csv"), "--output-dir", str(tmp_path / "set"), "--workers", "1", *flags])
    card = tmp_path / "set/card.json"
    return code, json.loads(card.read_text()) if card.exists() else {}


def test_puzzles_with_several_solutions_are_counted_and_said(tmp_path: Path, capsys) -> None:
    answer = text_of(PUZZLES[0])[1]
    question = answer[0] + "." * 15
    code, card = built(tmp_path, table(*PLAIN) + f"x,{question},{answer},0\n", "--num-test", "2")
    assert code == 0
    counts = card["several_solutions"]
    assert sorted(counts[split]["found"] for split in ("train", "test")) == [0, 1]
    assert sum(counts[split]["searched"] for split in ("train", "test")) == 13
    output = capsys.readouterr().out
    assert "have more than one solution" in output
    assert f"first: {tmp_path / 'in.csv'}:14" in output


def test_a_large_file_is_searched_in_a_sample(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dataset.sudoku.public_csv.SEARCHED", 5)
    _, card = built(tmp_path, table(*PLAIN), "--num-test", "2")
    assert card["several_solutions"] == {"train": {"searched": 5, "found": 0}, "test": {"searched": 2, "found": 0}}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-test", "100"], "--num-test 100 is more than"),
        (["--num-test", "12"], "--num-test 12 is more than"),
        (["--subsample-size", "1000"], "--subsample-size 1000 is more than the 11 training puzzles"),
        (["--min-difficulty", "8", "--num-test", "1", "--subsample-size", "9"], "with a rating >= 8"),
        (["--source-repo", "a/b"], "--source-repo"),
    ],
)
def test_more_than_there_is_is_refused(tmp_path: Path, capsys, flags: list[str], words: str) -> None:
    code, card = built(tmp_path, table(*PLAIN), *flags)
    assert (code, card) == (2, {})
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_puzzles_in_both_files_are_said(tmp_path: Path, monkeypatch, capsys) -> None:
    rows = table(*PLAIN).splitlines(keepends=True)
    (tmp_path / "in").mkdir()
    solved = text_of(PUZZLES[0])[1]
    (tmp_path / "in/train.csv").write_text("".join([*rows, rows[1], f"x,{solved},{solved},0\n"]))
    (tmp_path / "in/test.csv").write_text("".join([rows[0], *rows[1:4]]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sudoku-in").symlink_to(tmp_path / "store/set")
    assert main(["--input", "in"]) == 0  # called after the folder, and written to where the link points
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["sudoku-in"]
    output = capsys.readouterr().out
    assert "3 test puzzles are training puzzles too" in output
    assert "1 train puzzles repeat" in output
    assert "1 train puzzles have no blank" in output
    card = json.loads((tmp_path / "store/set/card.json").read_text())
    assert card["test_puzzles_in_training"] == card["test_puzzles_with_a_training_solution"] == 3


@pytest.mark.parametrize(
    "name", ["sudoku-extreme-1k-aug-1000", "sudoku-extreme-full", "Sudoku_Extreme", "my-sudokuextreme"]
)
def test_generated_puzzles_do_not_get_the_published_name(tmp_path: Path, capsys, name: str) -> None:
    flags = ["--output-dir", str(tmp_path / name), "--subsample-size", "4", "--num-test", "4"]
    assert main(flags) == 2
    assert "not Sudoku-Extreme" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_what_stands_under_the_published_name() -> None:
    whole = {"source": "csv", "counts": {"test": {"examples": SUDOKU_EXTREME.test_examples}}}
    assert SUDOKU_EXTREME.stand_in_reason("data/sudoku-extreme-full", whole) is None
    assert SUDOKU_EXTREME.stand_in_reason("data/sudoku-4x4", {"source": "generated"}) is None
    for card in ({"source": "generated"}, {"source": "csv", "counts": {"test": {"examples": 9}}}, {}):
        assert SUDOKU_EXTREME.stand_in_reason("data/sudoku-extreme-full", card)
    assert not SUDOKU_EXTREME.claims_to_be("data/sudoku-9x9-easy")


def test_home_folder_in_paths(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/in.csv").write_text(DIALECTS["kaggle"])
    assert main(["--input=~/in.csv", "--output-dir=~/x/set"]) == 0
    assert (tmp_path / "home/x/set/card.json").exists()
    assert os.listdir(tmp_path) == ["home"]


def test_real_hard_puzzles() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared/data/hard-sudoku"
    if not folder.is_dir():
        pytest.skip(f"the hard puzzles are not here: {folder}")
    boards = read_csv(folder / "magictour_top1465.csv")
    assert len(boards.questions) == 1465
    listed = read_csv(folder / "magictour_top1465.csv", min_difficulty=2000)
    assert 0 < len(listed.questions) < 1465
    assert np.all(listed.ratings >= 2000)
