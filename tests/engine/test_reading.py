"""Files of strangers: whatever lies under the name costs one line, no hang, no gigabytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine import reading
from engine.errors import UsageError
from engine.reading import Unreadable, check_yaml, parse_json, read_bytes, read_json, read_object, read_text, read_yaml

DEEP = 100_000
BOMB = "\n".join(
    ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12))]
)


def things(folder: Path) -> dict[str, Path]:
    """Things that are not files, by what the error has to call them."""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    return {"a folder": folder / "folder", "a pipe": folder / "pipe", "a device": Path("/dev/zero")}


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json, read_yaml, reading.check_regular])
def test_only_regular_files_are_opened(tmp_path: Path, read) -> None:
    for words, path in things(tmp_path).items():
        with pytest.raises(Unreadable, match=words):
            read(path)


def test_a_file_that_never_ends_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("{")
    os.truncate(path, 1 << 40)
    with pytest.raises(Unreadable, match="more than"):
        read_json(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * DEEP + "]" * DEEP, "nested 100,000 deep"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested 70 deep"),
        ("", "not JSON"),
        ("{", "not JSON"),
        ("9" * 5000, "not JSON"),
        ('"\\ud800"', "half a character"),
        ("\xff", "not valid UTF-8"),
    ],
)
def test_json_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        parse_json(text.encode("latin-1"))


@pytest.mark.parametrize(
    "value", [{"a": ["[" * 200, '\\"{']}, [[1]] * 200, {"n": float("inf")}, "\U0001f600", {"é": None}]
)
def test_json_that_is_read(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "stands for more than"),
        ("a: &a [*a]", "within itself"),
        ("x: &x {a: 1}\ny: &y {" + ", ".join(f"<<: *x, k{n}: 1" for n in range(3)) + "}\n" + BOMB, "stands for"),
        ("[" * 200 + "]" * 200, "nested more than"),
        ("[" * 5000 + "]" * 5000, "nest"),
        ("a: [1", "not YAML"),
        ("a: \x00", "not YAML"),
        ("a: 1\nseed: 010\n", "line 2: YAML reads 010 as 8: quote text, or write 8"),
        ("run_name: 007", "line 1: YAML reads 007 as 7"),
        ("a: {b: [x, 1:30]}", "line 1: YAML reads 1:30 as 90"),
    ],
)
def test_yaml_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        check_yaml(text)


def test_yaml_that_is_read() -> None:
    text = "base: &base {lr: 1e-4, list: [1, 2]}\none: *base\ntwo: {<<: *base, lr: 2}\n"
    text += "names: ['007', \"1:30\", 0, -0, 08, 0.01, 2026-11-28, 10, 12:30:xx]\n"
    assert check_yaml(text) == text


def test_an_object_that_is_needed_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    for content, words in (
        ("[]", "expected a JSON object, found list"),
        ("{", "is not JSON"),
        (None, "cannot be read"),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        with pytest.raises(UsageError, match=f"card.json.* {words}"):
            read_object(path)
