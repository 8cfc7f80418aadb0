"""Assigns the files of --input to splits by their names: `corpus-train.txt`, `Valid.txt`, `dev/`.

A published validation or test file is not trained on unless requested: ambiguous names are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dataset.text.formats import FOREIGN_SUFFIXES, JSON_SUFFIXES, TEXT_SUFFIXES
from engine.io import UsageError

Label = Literal["train", "val", "test"]
VALIDATION = (
    "val",
    "valid",
    "validation",
    "validate",
    "validating",
    "vali",
    "vld",
    "dev",
    "devel",
    "eval",
    "evaluation",
    "evaluate",
    "heldout",
    "holdout",
)
WORDS: dict[str, Label] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(VALIDATION, "val"),
    **dict.fromkeys(("test", "tests", "testing", "tst"), "test"),
}
SYNONYMS = {
    "train": {"train", "training", "trn"},
    "val": {"val", "valid", "validation", "validate"},
    "test": {"test", "tests"},
}
"""Words that --train-split and --val-split treat as the same."""
COMPOUND = re.compile(rf"(?:data|set|text)?({'|'.join(WORDS)})(?:set|data|split|files?|texts?|corpus|docs?)?")
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
ABOUT = {"readme", "license", "licence", "copying", "changelog", "notice", "authors", "citation", "datasheet"}
"""Files that describe a corpus: not part of it if other files are named as its splits."""
ABBREVIATIONS = {"tr", "te", "ts", "va", "vl", "cv"}
"""`tr` together with another of these may be a split or a language: the user chooses."""
NO_TEXT = (
    ".bin",
    ".idx",
    ".pkl",
    ".py",
    ".sh",
    ".ipynb",
    ".yaml",
    ".yml",
    ".toml",
    ".cfg",
    ".ini",
    ".log",
    ".bak",
    ".tmp",
)
"""Suffixes of files that are not text, even if named after a split: train.bin, train.py."""
EVERYTHING = "*"
CHOOSE = "choose with --train-split and --val-split, each the name of a file or a word in it"


@dataclass(frozen=True)
class Files:
    """The files of both splits, in reading order. If `val` is empty, a share of `train` is held out."""

    train: list[Path]
    val: list[Path]
    left_out: list[str]
    """Names of the files that are not read."""


def files_of(inputs: Sequence[Path], *, train_split: str | None, val_split: str | None) -> Files:
    """The files of --input by split; splits that are None are inferred from the files' names.

    A single file is the whole text, whatever its name. `train_split="*"` takes all files but those of `val_split`.

    Raises: UsageError listing the files of the input.
    """
    for path in inputs:
        if not path.exists():
            raise UsageError(f"--input {path} does not exist")
        if not path.is_file() and not path.is_dir():
            raise UsageError(f"--input {path} is neither a file nor a folder (a pipe or a device): write it to a file")
    if len(inputs) == 1 and inputs[0].is_file():
        if train_split is not None or val_split is not None:
            raise UsageError("--train-split and --val-split choose among files: give that folder as --input")
        return Files([inputs[0]], [], [])
    corpus = _Corpus(inputs)
    if train_split is None and val_split is None:
        return corpus.by_name()
    return corpus.by_request(train_split, val_split)


class _Corpus:
    """Several files, labelled with splits by their names."""

    def __init__(self, inputs: Sequence[Path]) -> None:
        self.title = str(inputs[0]) if len(inputs) == 1 else "--input"
        root = inputs[0] if len(inputs) == 1 else Path(os.path.commonpath([path.absolute() for path in inputs]))
        self.root = root if root.is_dir() else root.parent
        files: list[Path] = []
        self.unread: list[Path] = []
        for path in inputs:
            read, unread = ([path], []) if path.is_file() else members(path)
            files += read
            self.unread += unread
        self.files = list(dict.fromkeys(files))
        self.labels = _paired({file: self._label(file) for file in self.files})

    def name(self, file: Path) -> str:
        """The path of a file within the corpus."""
        return Path(os.path.relpath(file.absolute(), self.root.absolute())).as_posix()

    def list_names(self, files: Iterable[Path]) -> str:
        """The first eight names, and how many more there are."""
        names = [self.name(file) for file in files]
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    def _label(self, file: Path) -> set[Label]:
        """The splits that a path names: a folder named exactly after a split, else the file name, else the folders."""
        *folders, name = Path(self.name(file)).parts
        for folder in folders:
            if (exact := re.sub(r"[^a-z]", "", folder.lower())) in WORDS:
                return {WORDS[exact]}
        return labels_in(name) or set().union(*map(labels_in, folders))

    def _of(self, label: Label) -> list[Path]:
        return [file for file in self.files if self.labels[file] == {label}]

    def by_name(self) -> Files:
        """The splits by file names; unlabelled files are one text. Raises: UsageError for ambiguous names."""
        train, val, test = self._of("train"), self._of("val"), self._of("test")
        both = [file for file in self.files if len(self.labels[file]) > 1]
        rest = [file for file in self.files if not self.labels[file] and not _is_about(file)]
        named = train or val or test or both
        for file in self.unread:
            foreign = file.suffix.lower() in FOREIGN_SUFFIXES
            if labels_in(file.name) & {"train", "val"} and (named or foreign) and (foreign or not (train and val)):
                raise UsageError(
                    f"{self.title} holds {self.name(file)}, which is not read: unpack it or write it as .txt or .jsonl"
                )
        if not named:
            return Files(self.files, [], [self.name(file) for file in self.unread])
        if both or not train or (rest and not val):
            unclear = both or (val or test if not train else rest)
            why = "could be either split" if both else "no file to train on" if not train else "of no split"
            raise UsageError(
                f"{self.title} has files named after splits, but not clearly ({why}: {self.list_names(unclear)}): "
                f"{CHOOSE} (--train-split '{EVERYTHING}' takes all files as one text)"
            )
        return self._files(train, val)

    def by_request(self, train_split: str | None, val_split: str | None) -> Files:
        """The requested splits; one that is None is inferred. Raises: UsageError."""
        val = self._of("val") if val_split is None and train_split != EVERYTHING else self._named(val_split)
        if train_split == EVERYTHING:
            train = [file for file in self.files if file not in val]
        elif train_split is not None:
            train = self._named(train_split)
        else:
            train = self._of("train") or [file for file in self.files if file not in val and not self.labels[file]]
        if val_split is None:
            val = [file for file in val if file not in train]
        elif set(train) & set(val):
            raise UsageError(
                f"--train-split and --val-split name the same file of {self.title} ({self.list_names(self.files)})"
            )
        if not train:
            names = self.list_names(self.files)
            raise UsageError(f"{self.title} leaves no file to train on, it holds {names}: {CHOOSE}")
        return self._files(train, val)

    def _named(self, split: str | None) -> list[Path]:
        if split is None:
            return []
        matching = [file for file in self.files if split in (file.name, self.name(file))] or [
            file for file in self.files if _matches(Path(self.name(file)).parts, split.lower())
        ]
        if not matching:
            raise UsageError(f"{self.title} has no split {split!r}, it holds {self.list_names(self.files)}: {CHOOSE}")
        return matching

    def _files(self, train: list[Path], val: list[Path]) -> Files:
        used = {*train, *val}
        rest = [file for file in self.files if file not in used]
        return Files(train, val, [self.name(file) for file in (*rest, *self.unread)])


def members(folder: Path) -> tuple[list[Path], list[Path]]:
    """(files to read, other files that look like data) in a folder and its sub-folders, sorted by name.

    A .json file often describes a corpus (dataset_info.json): it is read only if it is named after a split, or if there
    is nothing else.
    """
    known = (*JSON_SUFFIXES, *TEXT_SUFFIXES)
    files = sorted(_walk(folder))
    plain = [path for path in files if path.suffix.lower() in known]
    json = [path for path in files if path.suffix.lower() == ".json"]
    taken = [path for path in json if not plain or labels_in("/".join(path.relative_to(folder).parts))]
    foreign = [
        path
        for path in files
        if path not in plain
        and path not in json
        and (path.suffix.lower() in FOREIGN_SUFFIXES or (labels_in(path.name) and _may_be_text(path)))
    ]
    if not plain and not taken:
        what = f"; it holds {foreign[0].name}" if foreign else ""
        raise UsageError(
            f"--input {folder} holds no text: no file named {', '.join('*' + end for end in (*known, '.json'))}{what}"
        )
    return sorted([*plain, *taken]), [*(path for path in json if path not in taken), *foreign]


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, following links to folders; without hidden files and those of macOS archives."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and name != "__MACOSX" and os.path.realpath(os.path.join(root, name)) not in seen
        ]
        yield from (path for name in names if name[0] != "." and (path := Path(root, name)).is_file())


def _may_be_text(path: Path) -> bool:
    return path.suffix.lower() not in NO_TEXT and not path.name.endswith("~")


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, split at dashes, dots, digits and capitals."""
    parted = CAMEL.sub(" ", name).lower()
    parted = re.sub(r"\b(held|hold)[^a-z]?out\b", r"\1out", re.sub(r"[_\W\d]+", " ", parted))
    return parted.split()


def labels_in(name: str) -> set[Label]:
    """The splits that a name contains."""
    matches = [COMPOUND.fullmatch(word) for word in words_of(name)]
    return {WORDS[match[1]] for match in matches if match}


def _matches(parts: Sequence[str], split: str) -> bool:
    """Whether a path belongs to `split`: a folder of that name, or the word in the file's name."""
    synonyms = next((words for words in SYNONYMS.values() if split in words), {split})
    if any(folder.lower() in synonyms for folder in parts[:-1]):
        return True
    words = words_of(parts[-1])
    matches = [COMPOUND.fullmatch(word) for word in words]
    if synonyms & {*words, *(match[1] for match in matches if match)}:
        return True
    return re.search(rf"(?:^|[^a-z0-9]){re.escape(split)}(?:$|[^a-z0-9])", parts[-1].lower()) is not None


def _paired(labels: dict[Path, set[Label]]) -> dict[Path, set[Label]]:
    """`labels`; if all are empty, those of names that differ only by the word of a split: mytrain, myval."""
    if any(labels.values()):
        return labels
    shapes = {file: re.sub(r"\d+", "0", file.name.lower()) for file in labels}
    paired = dict(labels)
    for file, shape in shapes.items():
        if "train" not in shape:
            continue
        for word in (word for word, label in WORDS.items() if label != "train"):
            for other in [other for other, shaped in shapes.items() if shaped == shape.replace("train", word)]:
                paired |= {file: {"train"}, other: {WORDS[word]}}
    return paired if any(paired.values()) else _abbreviated(labels)


def _abbreviated(labels: dict[Path, set[Label]]) -> dict[Path, set[Label]]:
    """`labels`, with both splits for names that differ only by ABBREVIATIONS (x_tr, x_va), which are ambiguous."""
    alike: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    for file in labels:
        words = words_of("/".join(file.parts[-2:]))
        for place, word in enumerate(words):
            if len(word) == 2:
                alike.setdefault((*words[:place], "", *words[place + 1 :]), {}).setdefault(word, []).append(file)
    unclear: dict[Path, set[Label]] = {}
    for variants in alike.values():
        if "tr" in variants and len(variants) > 1 and variants.keys() <= ABBREVIATIONS:
            unclear |= {file: {"train", "val"} for files in variants.values() for file in files}
    return labels | unclear


def _is_about(file: Path) -> bool:
    return bool(ABOUT & set(words_of(file.name)[:1]))
