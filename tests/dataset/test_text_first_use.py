"""The builder's words to a newcomer: flags without effect, fields that are not text, long words, what uses the network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dataset.build_text_dataset import main
from dataset.text.loading import folder_of
from dataset.text.subword import BPE, LONG_WORD, _without_long_words


def build(folder: Path, source: Path, *argv: str) -> int:
    return main(["mine", "--input", str(source), "--output-dir", str(folder / "out"), "--workers", "1", *argv])


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("to be or not\n" * 100)
    return path


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(50)))
    return path


def test_flags_in_vain_are_said(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path, plain, "--tokenizer", "char", "--seed", "5", "--json-key", "text") == 0
    warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert warned == [
        "warning: --seed had no effect: the end of a plain text is held out",
        "warning: --json-key had no effect: the input is plain text, not JSONL",
    ]


def test_flags_with_an_effect_are_not(tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("--tokenizer", "byte", "--seed", "5", "--json-key", "text", "--val-fraction", "0.2")
    assert build(tmp_path, lines, *argv) == 0
    assert "warning" not in capsys.readouterr().out
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert (card["seed"], card["counts"]["val"]["documents"]) == (5, 10)


def test_splits_of_files_leave_nothing_to_draw(tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    for split in ("train", "valid"):
        (folder / f"{split}.jsonl").write_text(lines.read_text())
    assert build(tmp_path, folder, "--tokenizer", "byte", "--seed", "5", "--val-fraction", "0.2") == 0
    output = capsys.readouterr().out
    assert "--seed had no effect: validation files are given" in output
    assert "--val-fraction had no effect: validation files are given" in output


def test_a_field_that_is_no_string(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": 5}\n' * 3)
    assert build(tmp_path, tmp_path / "in.jsonl", "--tokenizer", "byte") == 2
    error = capsys.readouterr().err
    assert "it is 5, not a string" in error
    assert "did you mean" not in error


def test_hub_without_its_library_names_hub(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for argv, message in ((["x", "--hub", "a/b"], "--hub needs"), (["wikitext", "--download"], "--download needs")):
        assert main([*argv, "--output-dir", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["a" * 5500, " " * 3000 + "b", "?!" * 2000, "ab1_" * 900, "words and words " * 300, ""]
)
def test_only_long_words_are_cut_and_nothing_is_lost(text: str) -> None:
    parts = _without_long_words(text)
    assert "".join(parts) == text
    assert (len(parts) > 1) == (max((len(word) for word in text.split(" ")), default=0) >= LONG_WORD or "   " in text)
    assert all(len(part) <= LONG_WORD for part in parts) or len(parts) == 1


def test_bpe_is_trained_on_no_longer_words() -> None:
    """Each merge of one letter doubles: in a word of 5,000 up to 4,096. (A megabyte of it would take minutes.)"""
    pytest.importorskip("tokenizers")
    tokenizer = BPE.fit("bpe", ["a" * 5000], vocab_size=400, eot=False)
    assert LONG_WORD / 2 < max(map(len, tokenizer.model["model"]["vocab"])) <= LONG_WORD
    assert tokenizer.decode(tokenizer.encode("a" * 5000)) == "a" * 5000


def test_a_path_may_begin_with_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert folder_of("~/ds") == Path("/home/someone/ds")
    assert folder_of("ds") == Path("data/ds")
