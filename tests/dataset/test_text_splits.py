"""Which files are trained on, told by their names, and what a file is, told by its content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset.build_text_dataset import main
from dataset.text.formats import form_of, read_text
from dataset.text.meta import load_tokenizer
from dataset.text.splits import files_of, labels_in
from dataset.text.stream import TokenStream
from engine.io import UsageError

HELD = "Held out, never to be trained on. "


def corpus(root: Path, *names: str) -> Path:
    for name in names:
        path = root / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} " * 20)
    return root / "corpus"


def chosen(*inputs: Path, train: str | None = None, val: str | None = None) -> tuple[list[str], list[str], list[str]]:
    files = files_of(inputs, train_split=train, val_split=val)
    return [path.name for path in files.train], [path.name for path in files.val], files.left_out


@pytest.mark.parametrize(
    "pair",
    [
        ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"),
        ("data_train.txt", "data_val.txt"),
        ("train_0001.txt", "val_0001.txt"),
        ("Train.txt", "Valid.txt"),
        ("wiki.train.tokens", "wiki.valid.tokens"),
        ("TRAIN.TXT", "DEV.TXT"),
        ("newsTrain.txt", "newsVal.txt"),
        ("train1.txt", "eval1.txt"),
        ("trainset.txt", "validset.txt"),
        ("train split.txt", "validation split.txt"),
        ("train+text.md", "held-out+text.md"),
        ("mytrain.txt", "myval.txt"),
        ("train.txt", "val/part.txt"),
        ("train/a.txt", "validation/a.txt"),
        ("en/Train/test-drive.txt", "en/Valid/a-train.txt"),
        ("a.training.text", "eval/b.text"),
        ("wiki-train/a.txt", "wiki-dev/a.txt"),
        ("train.txt", "validate.txt"),
        ("train.jsonl", "val.jl"),
    ],
)
def test_validation_files_validate(tmp_path: Path, pair: tuple[str, str]) -> None:
    folder = corpus(tmp_path, *pair)
    train, val = (Path(name).name for name in pair)
    assert chosen(folder) == ([train], [val], [])
    assert chosen(*(folder / name for name in pair)) == ([train], [val], [])  # as a shell writes corpus/*


@pytest.mark.parametrize(
    "names",
    [
        ("valid.txt",),
        ("test.txt", "valid.txt"),
        ("corpus.txt", "corpus-val.txt"),
        ("book.txt", "test/book.txt"),
        ("train-val.txt", "test.txt"),
        ("training-plan.txt", "poem.txt", "novel.txt"),
        ("train.txt", "valid.txt.gz"),
        ("train.txt", "valid.parquet"),
        ("train.txt", "valid"),
        ("test/train.txt", "test/valid.txt"),
        ("book.txt", "validate.txt"),
        ("train.txt", "valid.html"),
        ("train.txt", "val.en"),
        ("x_tr.txt", "x_te.txt"),
        ("tr/a.txt", "va/a.txt"),
    ],
)
def test_unclear_names_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"--train-split and --val-split|which is not read: unpack it"):
        chosen(corpus(tmp_path, *names))


def test_names_without_a_split_are_one_text(tmp_path: Path) -> None:
    names = ["carnival.txt", "constraints.md", "medieval.txt", "retrieval.txt", "testament.txt", "device.txt"]
    assert chosen(corpus(tmp_path, *names)) == (sorted(names), [], [])
    assert not any(map(labels_in, ("interval", "trains", "values", "contest", "evaluator", "devil")))


def test_hidden_folders_and_tools_are_no_text_and_links_are_followed(tmp_path: Path) -> None:
    folder = corpus(
        tmp_path, "train.txt", ".ipynb_checkpoints/train-checkpoint.txt", "__MACOSX/val.txt", ".git/val.txt"
    )
    assert chosen(folder) == (["train.txt"], [], [])
    assert chosen(corpus(tmp_path, "train.py", "val.bin", "eval.log")) == (["train.txt"], [], [])
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "b.txt").write_text("b")
    (folder / "val").symlink_to(tmp_path / "held")
    (folder / "round").symlink_to(folder)
    assert chosen(folder) == (["train.txt"], ["b.txt"], [])
    languages = corpus(tmp_path / "more", "wiki.tr.txt", "wiki.te.txt", "wiki.en.txt")
    assert chosen(languages) == (["wiki.en.txt", "wiki.te.txt", "wiki.tr.txt"], [], [])


def test_equal_splits_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = corpus(tmp_path, "train.txt", "val.txt")
    (folder / "val.txt").write_bytes((folder / "train.txt").read_bytes())
    assert main(["x", "--input", str(folder), "--tokenizer", "byte", "--output-dir", str(tmp_path / "out")]) == 0
    assert "warning: val is train, token for token" in capsys.readouterr().out


def test_documents_in_both_splits_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Copies of one document fall on either side of a random cut; given splits are compared as well."""
    folder = tmp_path / "c"
    folder.mkdir()
    rows = [f'{{"text": "row {number}"}}' for number in range(40)]
    (folder / "train.jsonl").write_text("\n".join([*rows, *rows[:10]]))
    for own, words in ((["new", "row 3", "row 3"], "2 of 3"), (["new", "newer"], "")):
        (folder / "val.jsonl").write_text("\n".join(f'{{"text": "{text}"}}' for text in own))
        built(tmp_path, folder)
        printed = capsys.readouterr().out
        assert (f"warning: {words} held-out documents also occur" in printed) is bool(words)
    (tmp_path / "same.jsonl").write_text("\n".join(rows[:1] * 50))
    built(tmp_path, tmp_path / "same.jsonl")
    assert "5 of 5 held-out documents also occur in the training split" in capsys.readouterr().out


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = corpus(tmp_path, "train.txt", "val.txt", "test.txt", "README.md", "info.json", "more.csv")
    assert chosen(folder) == (["train.txt"], ["val.txt"], ["README.md", "test.txt", "info.json", "more.csv"])
    assert main(["x", "--input", str(folder), "--tokenizer", "byte", "--output-dir", str(tmp_path / "out")]) == 0
    assert "note: left out: README.md, test.txt, info.json, more.csv\n" in capsys.readouterr().out


def test_splits_that_are_asked_for(tmp_path: Path) -> None:
    folder = corpus(tmp_path, "a.txt", "b.txt", "News-Valid_1.txt", "deep/c.txt")
    assert chosen(folder, val="valid")[:2] == (["a.txt", "b.txt", "c.txt"], ["News-Valid_1.txt"])
    assert chosen(folder, train="a.txt", val="b.txt") == (["a.txt"], ["b.txt"], ["News-Valid_1.txt", "deep/c.txt"])
    assert chosen(folder, train="a")[:2] == (["a.txt"], ["News-Valid_1.txt"])
    assert chosen(folder, train="deep", val="b")[:2] == (["c.txt"], ["b.txt"])
    assert chosen(folder, train="*")[:2] == (["News-Valid_1.txt", "a.txt", "b.txt", "c.txt"], [])
    assert chosen(folder, train="*", val="valid")[:2] == (["a.txt", "b.txt", "c.txt"], ["News-Valid_1.txt"])
    with pytest.raises(UsageError, match="has no split 'dev', it holds"):
        chosen(folder, train="a", val="dev")


def test_held_out_sentences_are_in_no_training_file(tmp_path: Path) -> None:
    folder = corpus(tmp_path, "stories-train.txt")
    (folder / "stories-VALID.txt").write_text(HELD * 10)
    assert main(["x", "--input", str(folder), "--tokenizer", "char", "--output-dir", str(tmp_path / "out")]) == 0
    text = load_tokenizer(tmp_path / "out").decode(TokenStream(tmp_path / "out", "train").tokens)
    assert "Held" not in text


# --- what a file is ---------------------------------------------------------------------------------------------------

DOCUMENTS = [{"text": f"Document {n}, with äöü.", "id": n} for n in range(40)]


def built(root: Path, path: Path) -> str:
    """The text of both splits."""
    out = root / "out"
    assert main(["x", "--input", str(path), "--tokenizer", "char", "--output-dir", str(out), "--overwrite"]) == 0
    tokenizer = load_tokenizer(out)
    return "".join(tokenizer.decode(TokenStream(out, split).tokens) for split in ("train", "val"))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
@pytest.mark.parametrize("layout", ["array", "pretty", "lines", "strings", "jsonl", "array.jsonl", "unnamed"])
def test_json_is_read_as_documents(tmp_path: Path, layout: str, mark: bytes) -> None:
    lines = "\n".join(json.dumps(document) for document in DOCUMENTS)
    text = {
        "array": json.dumps(DOCUMENTS),
        "pretty": json.dumps(DOCUMENTS, indent=2, ensure_ascii=False),
        "lines": lines,
        "strings": json.dumps([document["text"] for document in DOCUMENTS]),
        "jsonl": lines,
        "array.jsonl": json.dumps(DOCUMENTS),
        "unnamed": json.dumps(DOCUMENTS),
    }[layout]
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / (f"docs.{layout}" if "json" in layout else "docs.json")
    path.write_bytes(mark + text.encode())
    decoded = built(tmp_path, folder if layout == "pretty" else path)
    assert sorted(decoded.split("<|endoftext|>")) == sorted(["", *(str(document["text"]) for document in DOCUMENTS)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("docs.txt", json.dumps(DOCUMENTS), "holds JSON, not plain text: name it .jsonl"),
        ("docs.txt", json.dumps(DOCUMENTS, indent=1), "holds JSON, not plain text"),
        ("docs", "\n".join(map(json.dumps, DOCUMENTS)), "holds JSON, not plain text"),
        ("docs.json", json.dumps({"data": DOCUMENTS}, indent=1), "holds no JSON array of documents"),
        ("docs.json", "[" * 100_000, "nested too deep"),
        ("docs.json", '[{"text": "a"}, {"text"', "is not a JSON array of documents"),
        ("docs.jsonl", '["a", "b"]\n["c", "d"]\n', "holds more than one JSON array: a document per line is an object"),
        ("docs.json", "once upon a time", "holds no JSON array"),
        ("docs.csv", "text,label\nabc,1\n" * 9, "holds columns, not text"),
        ("docs.txt.gz", b"\x1f\x8b\x08\x00abc", "is compressed by gzip"),
        ("docs.txt", "ab\n".encode("utf-16") * 9, "is UTF-16, expected UTF-8: iconv -f UTF-16"),
        ("docs.txt", "ab\n".encode("utf-16-le") * 9, "is UTF-16 (or no text at all)"),
        ("docs.jsonl", '{"text": "a"}\n'.encode("utf-16"), "is UTF-16"),
        ("docs.json", '[{"text": "a"}]'.encode("utf-32"), "is UTF-32"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, name: str, content: str | bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    argv = ["x", "--input", str(tmp_path / name), "--tokenizer", "char", "--output-dir", str(tmp_path / "out")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_mark_of_utf8_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"to be or not " * 20)
    assert form_of(tmp_path / "a.txt") == ("text", 3)
    assert read_text(tmp_path / "a.txt").startswith("to be")
    assert "\ufeff" not in built(tmp_path, tmp_path / "a.txt")


@pytest.mark.parametrize(
    "text", ["[Enter Hamlet]\nTo be\n", "{ so it began\n", '["Hello," she said]\n', "[1] A note.\n"]
)
def test_text_that_begins_with_a_bracket_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text * 20)
    assert form_of(tmp_path / "a.txt")[0] == "text"
