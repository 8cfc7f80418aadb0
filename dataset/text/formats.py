"""Recognises the form of an input file: plain text, a document per line, a JSON array; refuses others by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from engine.io import Unreadable, UsageError, read_bytes

Form = Literal["text", "lines", "array"]
JSON_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".jl")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".raw", ".tokens")
DOCUMENTS = (*JSON_SUFFIXES, ".json")
RAW = ".raw"
"""Suffix of plain text that is used as it is, even if it looks like JSON."""
FOREIGN_SUFFIXES = (
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
    ".zip",
    ".tar",
    ".tgz",
    ".7z",
    ".lz4",
    ".parquet",
    ".arrow",
    ".feather",
    ".csv",
    ".tsv",
    ".xls",
    ".xlsx",
    ".pdf",
    ".docx",
    ".odt",
    ".epub",
    ".rtf",
    ".npy",
    ".npz",
    ".pkl",
    ".pt",
    ".sqlite",
    ".db",
)
COLUMNS = (".csv", ".tsv")
MAGIC = {
    b"\x1f\x8b": "compressed by gzip",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"%PDF-": "a PDF",
    b"\x93NUMPY": "a numpy array",
    b"SQLite format 3": "a database",
}
UTF8_MARK = b"\xef\xbb\xbf"
OTHER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
HEAD = 1 << 16
WHOLE = 1 << 26
"""Largest plain text file that is parsed as a whole because it begins like JSON."""


def form_of(path: Path) -> tuple[Form, int]:
    """The form of a file, and the byte at which its content begins (after a UTF-8 byte order mark).

    Raises: UsageError for an empty file, an encoding other than UTF-8, a format that is not text, or JSON in a file
    named as plain text.
    """
    with open(path, "rb") as stream:
        head = stream.read(HEAD)
        for magic, words in MAGIC.items():
            if head.startswith(magic):
                raise UsageError(f"{path} is {words}, not text: unpack or convert it to .txt or .jsonl first")
        begin = mark_of(path, head)
        stream.seek(begin)
        first = stream.readline(WHOLE)
        while first and not first.strip():
            first = stream.readline(WHOLE)
    suffix = path.suffix.lower()
    if not first:
        raise UsageError(f"{path} is empty")
    if suffix in COLUMNS:
        raise UsageError(f"{path}: {suffix} holds columns, not text: write it as .jsonl, one document a line")
    if suffix in DOCUMENTS:
        if first.lstrip().startswith(b"["):
            return "array", begin
        if suffix not in JSON_SUFFIXES and not isinstance(_json(first), dict | str):
            raise UsageError(f"{path} holds no JSON array of documents, and no document a line (.jsonl)")
        return "lines", begin
    if suffix != RAW and _is_json(path, begin, first):
        raise UsageError(
            f"{path} holds JSON, not plain text: name it .jsonl (a document a line) or .json (an array of documents) "
            f"to read its documents, {RAW} to train on the JSON itself"
        )
    return "text", begin


def mark_of(path: Path, head: bytes) -> int:
    """Length of the UTF-8 byte order mark at the start of a file. Raises: UsageError for UTF-16 and UTF-32."""
    for mark, name in OTHER_MARKS.items():
        if head.startswith(mark):
            raise _other_encoding(path, name)
    if len(head) >= 4 and head.count(0) > len(head) // 5:  # no mark, but every other byte of Latin text is zero
        raise _other_encoding(path, "UTF-16 (or no text at all)")
    return len(UTF8_MARK) if head.startswith(UTF8_MARK) else 0


def _other_encoding(path: Path, name: str) -> UsageError:
    return UsageError(f"{path} is {name}, expected UTF-8: iconv -f {name[:6]} -t UTF-8 {path.name} > NEW converts it")


def read_text(path: Path) -> str:
    """Read a text file without its byte order mark. Raises: UsageError for another encoding or no file, OSError."""
    try:
        data = read_bytes(path)
    except Unreadable as error:
        raise UsageError(f"{path} {error}") from None
    begin = mark_of(path, data[:HEAD])
    try:
        return data[begin:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: byte {begin + error.start} ({error.reason})") from None


def parse(text: str | bytes) -> Any:
    """Parse a JSON value. Raises: ValueError, also if it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _json(text: bytes) -> Any:
    try:
        return parse(text)
    except ValueError:
        return None


def _is_json(path: Path, begin: int, first: bytes) -> bool:
    """Whether a file named as plain text holds JSON documents: lines of objects, or a single value."""
    start = first.lstrip()
    if isinstance(_json(first), dict):
        return True
    if not re.match(rb'(\{\s*("|$)|\[\s*([\{\["]|$))', start):
        return False
    if path.stat().st_size > WHOLE:
        return start.startswith((b'[{"', b'{"'))
    return isinstance(_json(path.read_bytes()[begin:]), dict | list)
