"""Corpora on disk as lists of pieces: byte ranges of about a megabyte, each read by a worker.

Pieces depend on the files alone, so any number of workers gives the same tokens, and no process holds a whole corpus.
Plain text is one stream over all its files or, on request, a document per line; a JSONL file has a document per line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataset.text.formats import Form, form_of, parse
from engine.distributed import keyed_numpy
from engine.io import UsageError, did_you_mean

PIECE = 1 << 20
WINDOW = 1 << 16
# A cut between a visible character and a space, which no published pre-tokenizer joins into one word.
CUT = re.compile(rb"[!-~] ")
# JSON escapes can spell a lone surrogate, which UTF-8 text cannot have.
HALF = re.compile("[\ud800-\udfff]")
FIELD = re.compile(r"\{(\w+)\}")
"""A field of a template."""


@dataclass(frozen=True)
class Piece:
    """Bytes [low, high) of a file; for a JSONL file, the documents of the split in that range."""

    path: Path
    low: int
    high: int
    keys: tuple[str, ...] | None = None
    """None: plain text. Else the fields whose values are a document; empty: each line is a document as it is."""
    taken: np.ndarray | None = None
    """bool [documents in the piece]; None takes all."""
    array: bool = False
    """The documents are the items of one JSON array, not lines."""
    template: str = ""
    """Template of a document with `{field}` for each value; empty: the values, one per line."""

    def texts(self) -> list[str]:
        """The text of the piece, or its documents. Raises: UsageError naming the file."""
        with open(self.path, "rb") as stream:
            stream.seek(self.low)
            data = stream.read(self.high - self.low)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.path} is not UTF-8: byte {self.low + error.start} ({error.reason})") from None
        if self.keys is None:
            return [text]
        if self.array:
            return [
                self._document(record, at) for at, record in self._chosen([*enumerate(read_array(self.path, text))])
            ]
        # blank as in bytes.strip, by which `_json_pieces` counts documents
        lines = self._chosen([(at, line) for at, line in enumerate(text.split("\n")) if line.strip(" \t\r\f\v")])
        if not self.keys:
            return [line.strip() for _, line in lines]
        return [self._document(self._record(line, at), at) for at, line in lines]

    def _chosen(self, documents: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        if self.taken is None:
            return documents
        return [document for document, taken in zip(documents, self.taken, strict=True) if taken]

    def _place(self, at: int) -> str:
        """The file, with the number of line `at` of this piece (or of the document, in an array), for messages."""
        if self.array:
            return f"{self.path}: document {at + 1}"
        with open(self.path, "rb") as stream:
            before = sum(stream.read(min(PIECE, self.low - low)).count(b"\n") for low in range(0, self.low, PIECE))
        return f"{self.path}:{before + at + 1}"

    def _record(self, line: str, at: int) -> Any:
        try:
            return parse(line)
        except ValueError as error:
            why = getattr(error, "msg", error)  # without its "line 1", which is not the file's
            raise UsageError(f"{self._place(at)} is not JSONL: {why} in {line[:60]!r}") from None

    def _document(self, record: Any, at: int) -> str:
        if isinstance(record, str):
            return self._checked(record, at)
        values = []
        for key in self.keys or ():
            value = record.get(key) if isinstance(record, dict) else None
            if not isinstance(value, str):
                if isinstance(record, dict):
                    have = (
                        f"it is {json.dumps(value)[:40]}, not a string" if key in record else did_you_mean(key, record)
                    )
                else:
                    have = "a document must be an object or a string"
                raise UsageError(f"{self._place(at)} is a document without text under {key!r} (--json-key): {have}")
            values.append(value)
        if self.template:
            return self._checked(fill(self.template, dict(zip(self.keys or (), values, strict=True))), at)
        return self._checked("\n".join(values), at)

    def _checked(self, text: str, at: int) -> str:
        """`text`. Raises: UsageError if it has a lone surrogate."""
        if not text.isascii() and (half := HALF.search(text)):
            around = ascii(text[max(0, half.start() - 20) : half.end()])
            raise UsageError(
                f"{self._place(at)} has half a character (a lone surrogate, no UTF-8 can hold it) in {around}"
            )
        return text


@dataclass(frozen=True)
class Corpus:
    """The pieces of both splits and the rule of the split."""

    train: list[Piece]
    val: list[Piece]
    documents: bool
    """Whether a token marks the end of each document."""
    rule: str
    files: list[Path]


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with each `{field}` replaced by its value; braces in values are kept."""
    return FIELD.sub(lambda match: values[match[1]], template)


def read_corpus(
    train: Sequence[Path],
    val: Sequence[Path],
    *,
    keys: tuple[str, ...],
    val_fraction: float,
    seed: int,
    template: str = "",
    lines: bool = False,
) -> Corpus:
    """Read the corpus of files; `lines`: each non-blank line of a plain text is a document.

    Raises: UsageError for files of different forms or without content, and if `template` has other fields than `keys`.
    """
    if template and (fields := tuple(FIELD.findall(template))) != keys:
        raise UsageError(
            f"--template {template!r} has the fields {', '.join(fields) or '(none)'}, "
            f"--json-key names {', '.join(keys)}"
        )
    files = [*train, *val]
    forms = {path: form_of(path) for path in files}
    kinds = {form == "text" for form, _ in forms.values()}
    if len(kinds) > 1:
        raise UsageError(f"--input mixes plain text and JSONL ({files[0].name} … {files[-1].name}): give one of them")
    documents = kinds == {False} or lines
    if kinds == {True} and lines:
        forms = {path: ("lines", begin) for path, (_, begin) in forms.items()}
        keys = ()
    if not val and not 0 < val_fraction < 1:
        raise UsageError(f"--val-fraction {val_fraction:g} must be between 0 and 1")
    share = f"{100 * val_fraction:g} %"
    if documents:
        first = [piece for path in train for piece in _json_pieces(path, forms[path], keys, template)]
        second = [piece for path in val for piece in _json_pieces(path, forms[path], keys, template)]
        if val:
            training, validation = ([piece for piece, _ in pieces] for pieces in (first, second))
            return Corpus(training, validation, True, "that of the files", files)
        left, right = _split_pieces(first, val_fraction, seed)
        return Corpus(left, right, True, f"{share} of the documents, drawn with the seed", files)
    spans = [(path, forms[path][1], path.stat().st_size) for path in train]
    if val:
        held = [(path, forms[path][1], path.stat().st_size) for path in val]
        return Corpus(_text_pieces(spans), _text_pieces(held), False, "that of the files", files)
    left_spans, right_spans = _cut_spans(spans, val_fraction)
    return Corpus(
        _text_pieces(left_spans), _text_pieces(right_spans), False, f"the last {share} of the characters", files
    )


Span = tuple[Path, int, int]


def _blocks(span: Span) -> Iterator[tuple[int, np.ndarray]]:
    path, low, high = span
    with open(path, "rb") as stream:
        stream.seek(low)
        while low < high:
            data = np.frombuffer(stream.read(min(PIECE, high - low)), dtype=np.uint8)
            yield low, data
            low += len(data)


def _starts(block: np.ndarray) -> np.ndarray:
    """Mask of the bytes that begin a character of UTF-8."""
    return (block & 0xC0) != 0x80


def _cut_spans(spans: list[Span], val_fraction: float) -> tuple[list[Span], list[Span]]:
    """Cut after int(characters x (1 - fraction)) characters, exactly as nanoGPT does."""
    total = sum(int(_starts(block).sum()) for span in spans for _, block in _blocks(span))
    left = int(total * (1 - val_fraction))
    for number, span in enumerate(spans):
        for low, block in _blocks(span):
            starts = _starts(block)
            count = int(starts.sum())
            if left < count:
                at = low + int(np.flatnonzero(starts)[left])
                path, begin, end = span
                first = [(path, begin, at)] if at > begin else []
                return [*spans[:number], *first], [(path, at, end), *spans[number + 1 :]]
            left -= count
    raise UsageError(f"{spans[0][0]} is too short to hold anything out for validation")


def _text_pieces(spans: list[Span]) -> list[Piece]:
    pieces = []
    for path, low, high in spans:
        with open(path, "rb") as stream:
            while high - low > PIECE + WINDOW:
                stream.seek(low + PIECE)
                window = stream.read(WINDOW)
                match = CUT.search(window)
                # without a space nearby (other scripts), cut between two characters
                at = match.start() + 1 if match else int(np.argmax(_starts(np.frombuffer(window, dtype=np.uint8))))
                pieces.append(Piece(path, low, low + PIECE + at))
                low += PIECE + at
        pieces.append(Piece(path, low, high))
    return pieces


def _json_pieces(path: Path, form: tuple[Form, int], keys: tuple[str, ...], template: str) -> list[tuple[Piece, int]]:
    """Pieces that end at the end of a line (an array is one piece), and the number of documents in each."""
    kind, begin = form
    if kind == "array":
        size = path.stat().st_size
        return [
            (
                Piece(path, begin, size, keys, array=True, template=template),
                len(read_array(path, path.read_bytes()[begin:])),
            )
        ]
    pieces, low, at, count = [], begin, begin, 0
    with open(path, "rb") as stream:
        stream.seek(begin)
        for line in stream:
            at += len(line)
            count += bool(line.strip())
            if at - low >= PIECE:
                pieces.append((Piece(path, low, at, keys, template=template), count))
                low, count = at, 0
    return [*pieces, (Piece(path, low, at, keys, template=template), count)] if count else pieces


def read_array(path: Path, text: str | bytes) -> list[Any]:
    """The items of a JSON array. Raises: UsageError naming the file."""
    try:
        items = parse(text)
    except ValueError as error:  # UnicodeDecodeError is one, too
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            raise UsageError(
                f"{path} holds more than one JSON array: a document per line is an object or a string, "
                f"and an array holds all documents of its file (line {error.lineno} follows its end)"
            ) from None
        raise UsageError(f"{path} is not a JSON array of documents: {error}") from None
    if not isinstance(items, list):
        raise UsageError(f"{path} is not a JSON array of documents")
    return items


def _split_pieces(pieces: list[tuple[Piece, int]], val_fraction: float, seed: int) -> tuple[list[Piece], list[Piece]]:
    total = sum(count for _, count in pieces)
    if total < 2:
        for piece, _ in pieces:
            piece.texts()  # report an error in the only document first: it may be an object that holds them all
        where = f"{pieces[0][0].path} holds" if len(pieces) == 1 else "--input holds"
        raise UsageError(f"{where} {total} document(s): nothing can be held out for validation")
    held = np.zeros(total, dtype=bool)
    held[keyed_numpy(seed, "text/split").permutation(total)[: min(total - 1, max(1, round(total * val_fraction)))]] = (
        True
    )
    train, val, first = [], [], 0
    for piece, count in pieces:
        mine = held[first : first + count]
        train.append(replace(piece, taken=~mine))
        val.append(replace(piece, taken=mine))
        first += count
    return train, val


def sample_texts(pieces: Sequence[Piece], most_bytes: int) -> Iterator[str]:
    """Texts for fitting a tokenizer: all, or evenly spaced pieces of about `most_bytes` in total."""
    step = max(1, -(-sum(piece.high - piece.low for piece in pieces) // most_bytes))
    for piece in pieces[::step]:
        yield from piece.texts()
