"""Corpora on disk as lists of pieces: byte ranges of about a megabyte that workers read by themselves.

Pieces depend on the files alone, so any number of workers makes the same tokens, and nothing holds a whole corpus.
Plain text is one stream over all its files; a JSONL file holds one document per line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.distributed import keyed_numpy
from engine.io import UsageError, closest

PIECE = 1 << 20
WINDOW = 1 << 16
JSON_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".raw", ".tokens")
ALIASES = {
    "valid": ("valid", "validation", "val"),
    "validation": ("validation", "valid", "val"),
    "val": ("val", "valid"),
}
# A place where no published pre-tokenizer joins what stands before to what comes after: a space behind a visible sign.
CUT = re.compile(rb"[!-~] ")
# JSON can spell half of a character that UTF-16 writes in two parts; text cannot.
HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Piece:
    """Bytes [low, high) of a file; of a JSONL file the documents among them that belong to the split."""

    path: Path
    low: int
    high: int
    keys: tuple[str, ...] | None = None
    """None: plain text. Else the fields whose values, one per line, make up a document."""
    taken: np.ndarray | None = None
    """bool [documents in the piece]; None takes all."""

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
        lines = [line for line in text.split("\n") if line.strip(" \t\r\f\v")]  # as bytes.strip counts them
        if self.taken is not None:
            lines = [line for line, taken in zip(lines, self.taken, strict=True) if taken]
        return [self._document(line) for line in lines]

    def _document(self, line: str) -> str:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{self.path} is not JSONL: {error} in {line[:60]!r}") from None
        if isinstance(record, str):
            return self._whole(record)
        values = []
        for key in self.keys or ():
            value = record.get(key) if isinstance(record, dict) else None
            if not isinstance(value, str):
                if isinstance(record, dict):
                    have = f"it is {json.dumps(value)[:40]}, no string" if key in record else closest(key, record)
                else:
                    have = "a line must be an object or a string"
                raise UsageError(f"{self.path} has a line without text under {key!r} (--json-key): {have}")
            values.append(value)
        return self._whole("\n".join(values))

    def _whole(self, text: str) -> str:
        if not text.isascii() and (half := HALF.search(text)):
            around = ascii(text[max(0, half.start() - 20) : half.end()])
            raise UsageError(f"{self.path} has half a character (a lone surrogate, no UTF-8 can hold it) in {around}")
        return text


@dataclass(frozen=True)
class Corpus:
    """The pieces of both splits and how they were told apart."""

    train: list[Piece]
    val: list[Piece]
    documents: bool
    """Whether the end of each document is marked by a token."""
    rule: str
    files: list[Path]


def is_json(path: Path) -> bool:
    """Whether the file holds one document per line."""
    return path.suffix.lower() in JSON_SUFFIXES


def _members(folder: Path) -> list[Path]:
    known = (*JSON_SUFFIXES, *TEXT_SUFFIXES)
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in known and p.name[0] != ".")
    if not found:
        raise UsageError(f"--input {folder} holds no text: no file named {', '.join('*' + suffix for suffix in known)}")
    return found


def _split_files(folder: Path, split: str) -> list[Path]:
    names = "|".join(map(re.escape, ALIASES.get(split, (split,))))
    pattern = re.compile(rf"(?:^|\.)(?:{names})(?:[.-]|$)")
    return [p for p in _members(folder) if pattern.search(p.name) or p.relative_to(folder).parts[0] == split]


def files_of(
    inputs: Sequence[Path], *, train_split: str | None, val_split: str | None
) -> tuple[list[Path], list[Path]]:
    """(training files, validation files) of --input; no validation files: a share of the training data is held out.

    Splits that are None are looked for (train, valid) in a single folder, and taken where both are there.

    Raises: UsageError saying what the folder holds.
    """
    for path in inputs:
        if not path.exists():
            raise UsageError(f"--input {path} does not exist")
    if len(inputs) == 1 and inputs[0].is_dir():
        folder = inputs[0]
        train = _split_files(folder, train_split or "train")
        val = _split_files(folder, val_split or "valid")
        have = ", ".join(str(p.relative_to(folder)) for p in _members(folder)[:8])
        for asked, got in ((train_split, train), (val_split, val)):
            if asked is not None and not got:
                raise UsageError(
                    f"{folder} has no split {asked!r}, it holds {have}: choose with --train-split, --val-split"
                )
        if train_split is not None or train:
            if set(train) & set(val):
                raise UsageError(f"--train-split and --val-split name the same file of {folder} ({have})")
            return train, val
    elif train_split is not None or val_split is not None:
        raise UsageError("--train-split and --val-split choose files of one folder: give that folder as --input")
    return [file for path in inputs for file in ([path] if path.is_file() else _members(path))], []


def read_corpus(
    train: Sequence[Path], val: Sequence[Path], *, keys: tuple[str, ...], val_fraction: float, seed: int
) -> Corpus:
    """The corpus of these files. Raises: UsageError on files that do not go together or hold nothing."""
    files = [*train, *val]
    kinds = {is_json(path) for path in files}
    if len(kinds) > 1:
        raise UsageError(f"--input mixes plain text and JSONL ({files[0].name} … {files[-1].name}): give one of them")
    documents = kinds == {True}
    if not val and not 0 < val_fraction < 1:
        raise UsageError(f"--val-fraction {val_fraction:g} must lie between 0 and 1")
    for path in files:
        if path.stat().st_size == 0:
            raise UsageError(f"{path} is empty")
    share = f"{100 * val_fraction:g} %"
    if documents:
        first = [piece for path in train for piece in _json_pieces(path, keys)]
        second = [piece for path in val for piece in _json_pieces(path, keys)]
        if val:
            return Corpus(_bare(first), _bare(second), True, "that of the files", files)
        left, right = _draw(first, val_fraction, seed)
        return Corpus(left, right, True, f"{share} of the documents, drawn with the seed", files)
    spans = [(path, 0, path.stat().st_size) for path in train]
    if val:
        held = [(path, 0, path.stat().st_size) for path in val]
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
    """Which bytes begin a character."""
    return (block & 0xC0) != 0x80


def _cut_spans(spans: list[Span], val_fraction: float) -> tuple[list[Span], list[Span]]:
    """Cut where int(characters x (1 - fraction)) characters have passed: nanoGPT's rule, to the character."""
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
                # without a space near (other scripts), between two characters
                at = match.start() + 1 if match else int(np.argmax(_starts(np.frombuffer(window, dtype=np.uint8))))
                pieces.append(Piece(path, low, low + PIECE + at))
                low += PIECE + at
        pieces.append(Piece(path, low, high))
    return pieces


def _json_pieces(path: Path, keys: tuple[str, ...]) -> list[tuple[Piece, int]]:
    """Pieces that end with a line, and the number of documents in each."""
    pieces, low, at, count = [], 0, 0, 0
    with open(path, "rb") as stream:
        for line in stream:
            at += len(line)
            count += bool(line.strip())
            if at - low >= PIECE:
                pieces.append((Piece(path, low, at, keys), count))
                low, count = at, 0
    return [*pieces, (Piece(path, low, at, keys), count)] if count else pieces


def _bare(pieces: list[tuple[Piece, int]]) -> list[Piece]:
    return [piece for piece, _ in pieces]


def _draw(pieces: list[tuple[Piece, int]], val_fraction: float, seed: int) -> tuple[list[Piece], list[Piece]]:
    total = sum(count for _, count in pieces)
    if total < 2:
        raise UsageError(f"--input holds {total} document(s): nothing can be held out for validation")
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
    """Texts for fitting a tokenizer: all of them, or evenly spaced pieces of about `most_bytes` together."""
    step = max(1, -(-sum(piece.high - piece.low for piece in pieces) // most_bytes))
    for piece in pieces[::step]:
        yield from piece.texts()
