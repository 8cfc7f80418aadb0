"""Data sets that a config names, as a family reads them (`Verification.data`)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataPath:
    """One data set that a config names. `mode` and `groups` are None where nothing gives them."""

    path: str
    key: str
    """The config key that names it."""
    state: str
    """there, built on first use, published (built from public data by a command), unknown."""
    mode: str | None = None
    groups: int | None = None
    mean_examples: float | None = None
    problem: str = ""
    """What is amiss with a data set that is there."""
    origin: str = ""
    """The file that gives mode and size."""


@dataclass(frozen=True)
class TextPath(DataPath):
    """One text data set. What is not known is empty or None."""

    tokenizer: str = ""
    vocabulary: str = ""
    """Two data sets whose vocabularies are called the same read a number as the same piece of text."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Tokens of each split."""
    text: str = ""
    """What the text is, where the table of names says it: equal for two tokenizations of one text."""
