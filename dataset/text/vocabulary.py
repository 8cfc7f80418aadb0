"""The vocabularies of a run, stored in its directory: sampling and export need no data, a changed one is noticed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.text.loading import short_names
from dataset.text.meta import read_meta, tokenizer_state
from dataset.text.tokenizer import Tokenizer, from_state
from engine.io import UsageError, read_object

FILE = "vocabularies.json"


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of one data set."""

    name: str
    path: str
    """The data set's folder when the run started."""
    size: int
    state: dict[str, Any] | None
    """State of its tokenizer; None for token files without one."""

    def tokenizer(self) -> Tokenizer:
        """Restore its tokenizer. Raises: UsageError if there is none, or it is damaged."""
        if self.state is None:
            raise UsageError(f"{self.path} has token files but no tokenizer: text cannot be encoded or decoded")
        return from_state(self.state)

    def matches_data(self) -> bool:
        """Whether the data set, if it exists, still has this vocabulary."""
        folder = Path(self.path)
        return not folder.exists() or _state(folder) == self.state


def vocabularies_of(folders: Sequence[Path]) -> list[Vocabulary]:
    """The vocabularies of data sets. Raises: UsageError for a folder that is not a text data set."""
    return [
        Vocabulary(name, str(folder), read_meta(folder).vocab_size, _state(folder))
        for name, folder in zip(short_names(folders), folders, strict=True)
    ]


def _state(folder: Path) -> dict[str, Any] | None:
    try:
        return tokenizer_state(folder)
    except UsageError:
        return None


def to_text(vocabularies: Sequence[Vocabulary]) -> str:
    """The content of FILE."""
    return json.dumps({"format": 1, "vocabularies": [vars(each) for each in vocabularies]}, ensure_ascii=True) + "\n"


def read_vocabularies(run_dir: Path) -> list[Vocabulary] | None:
    """Read the vocabularies of a run; None if it has none (an older version, or a checkpoint without its run).

    Raises: UsageError for a damaged file.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    try:
        vocabularies = [Vocabulary(**entry) for entry in read_object(path)["vocabularies"]]
    except (KeyError, TypeError):
        vocabularies = []
    for each in vocabularies:
        kinds = (each.name, str), (each.path, str), (each.size, int), (each.state, dict | None)
        if not all(isinstance(value, kind) for value, kind in kinds) or not 0 < each.size <= 1 << 24:
            vocabularies = []
            break
    if not vocabularies:
        raise UsageError(f"{path} is damaged: expected the name, path, size and state of each vocabulary")
    return vocabularies


def require_same_vocabulary(run_dir: Path, folders: Sequence[Path], *, separate: bool, key: str) -> None:
    """Check that data sets have a vocabulary that the weights of a run were trained with.

    `separate`: each data set has its own token table, in the run's order. A run without stored vocabularies is not
    checked.

    Raises: UsageError that begins with `key`.
    """
    trained = read_vocabularies(run_dir) or []
    known = [each for each in trained if each.state is not None]
    new = [each for each in vocabularies_of(folders) if each.state is not None]
    for number, each in enumerate(new if known else ()):
        expected = trained[number : number + 1] if separate else known
        if expected and each.state not in [one.state for one in expected]:
            raise UsageError(
                f"{key}: {each.path} has another vocabulary than {expected[0].path} of that run, so its numbers mean "
                "other words to the model: build it with --tokenizer-from a data set of that run"
            )
