"""Grid data that do not agree with themselves are refused when they are opened, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dataset import catalog, checks
from dataset.format import load_splits
from dataset.sudoku.build import SudokuBuild, build
from dataset.text.build import TextBuild, build as build_text
from dataset.text.stream import TokenStream
from dataset.writing import describe
from engine.io import UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    build(SudokuBuild(output_dir=tmp_path / "set", size=4, num_train=20, num_test=6, num_aug=1))
    return tmp_path / "set"


def foreign(root: Path) -> Path:
    """As the published builders leave it: without a card."""
    (root / "card.json").unlink()
    return root


def edit(root: Path, *splits: str, **changes: object) -> None:
    for split in splits or ("train", "test"):
        path = root / split / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def put(root: Path, name: str, value: int, *, dtype: str = "uint8", split: str = "train", row: int = 7) -> None:
    path = root / split / f"all__{name}.npy"
    array = np.load(path).astype(dtype)
    array[row, 3] = value
    np.save(path, array)


def refusal(root: Path) -> str:
    with pytest.raises(UsageError) as caught:
        catalog.ensure(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["inputs", "labels"])
@pytest.mark.parametrize(
    ("value", "dtype"), [(200, "uint8"), (6, "uint8"), (-1, "int32"), (-100, "int64"), (2**40, "int64")]
)
def test_a_token_beyond_the_vocabulary_is_named(root: Path, split: str, name: str, value: int, dtype: str) -> None:
    put(root, name, value, dtype=dtype, split=split, row=2)
    message = refusal(root)
    assert f"{split}/all__{name}.npy: row 2 has the token {value} at position 3, but vocab_size is 6" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 1}, "vocab_size is 1"),
        ({"vocab_size": 12}, "vocab_size is 12, but was 6"),
        ({"ignore_label_id": 4}, "ignore_label_id is 4, but was 0"),
        ({"ignore_label_id": None}, "ignore_label_id is None, but was 0"),
        ({"ignore_label_id": 99}, "ignore_label_id must be null, -100 or a token"),
        ({"pad_id": 2}, "pad_id is 2, but was 0"),
        ({"total_groups": 40}, "total_groups is 40, the arrays hold 20"),
        ({"total_puzzles": 80}, "total_puzzles is 80, the arrays hold 40"),
        ({"mean_puzzle_examples": 2}, "mean_puzzle_examples is 2, the arrays hold 1"),
        ({"num_puzzle_identifiers": 2}, "identifiers.json: holds 1 names, train/dataset.json counts 2"),
    ],
)
def test_dataset_json_that_contradicts_arrays_or_card_is_named(root: Path, changes: dict, words: str) -> None:
    edit(root, **changes)
    assert words in refusal(root)


def test_one_split_that_ignores_other_labels_is_named_without_a_card(root: Path) -> None:
    edit(foreign(root), "test", ignore_label_id=3)
    train = load_splits([root], "train")
    with pytest.raises(UsageError, match=r"ignore_label_id is 0 in .*train.* and 3 in .*test"):
        load_splits([root], "test", like=train)


def test_labels_of_which_none_is_scored_are_named(root: Path) -> None:
    path = foreign(root) / "train/all__labels.npy"
    np.save(path, np.full_like(np.load(path), 2))
    edit(root, ignore_label_id=2)
    assert "every label is ignore_label_id=2" in refusal(root)


def test_the_published_layout_loads(root: Path) -> None:
    """TRM's Sudoku builder counts groups as puzzles and keeps int64; ignored labels may lie outside the vocabulary."""
    edit(foreign(root), ignore_label_id=-100)
    edit(root, "train", total_puzzles=20)
    put(root, "labels", -100, dtype="int64")
    catalog.ensure(root)
    assert load_splits([root], "train")[0].batch(np.arange(8))["labels"][7, 3] == -100


def test_a_large_array_is_sampled_and_its_batches_are_looked_at(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SCANNED_BYTES", 64)
    monkeypatch.setattr(checks, "BLOCK_BYTES", 32)  # two rows at a time, at two places: 0, 1 and 20, 21
    put(root, "inputs", 77, row=9)
    split = load_splits([root], "train")[0]
    assert not split.whole
    split.batch(np.array([3, 8, 10]))
    with pytest.raises(UsageError, match=r"inputs\.npy: row 9 has the token 77 at position 3"):
        split.batch(np.array([3, 9]))
    put(root, "inputs", 77, row=21)
    with pytest.raises(UsageError, match="row 21 has the token 77"):
        load_splits([root], "train")


def test_a_file_changed_after_it_was_seen_is_read_again(root: Path) -> None:
    catalog.ensure(root)
    put(root, "labels", 99)
    assert "row 7" in refusal(root)


def test_the_hash_covers_what_gives_the_arrays_their_meaning(root: Path) -> None:
    before = describe(foreign(root))
    edit(root, ignore_label_id=2)
    after = describe(root)
    assert before["content_hash"] == after["content_hash"]
    assert before["metadata_hash"] != after["metadata_hash"]


def test_generated_data_under_the_published_name_say_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = root.rename(root.parent / "sudoku-extreme-1k-aug-1000")
    catalog.ensure(named)
    output = capsys.readouterr().out
    assert output.startswith(f"STAND-IN DATA: {named} is made of generated puzzles, not of Sudoku-Extreme")
    assert "--input FOLDER" in output
    assert describe(named)["stand_in"] is True
    foreign(named)
    catalog.ensure(named)
    assert "test split has 422,786 puzzles (here 6)" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "factor"), [("bytes", 2), ("tokens", 2)])
def test_counts_of_a_text_that_its_tokens_contradict_are_named(tmp_path: Path, key: str, factor: int) -> None:
    (tmp_path / "in.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    build_text(TextBuild(output_dir=tmp_path / "set", inputs=(tmp_path / "in.txt",), source="a test", tokenizer="char"))
    assert TokenStream(tmp_path / "set", "val").bytes_per_token == 1
    meta = tmp_path / "set/meta.json"
    raw = json.loads(meta.read_text())
    raw[key]["val"] *= factor
    meta.write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=r"meta\.json(: bytes and tokens of val| says \d+: it was cut short)"):
        TokenStream(tmp_path / "set", "val").bytes_per_token  # noqa: B018
