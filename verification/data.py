"""The data sets of a config, as its family reads them (`Verification.data`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataPath:
    """A data set of a config. `mode` and `groups` are None if they are not known."""

    path: str
    key: str
    """The config key that names it."""
    state: str
    """there (exists), built on first use, published (built from public data by a command), or unknown."""
    mode: str | None = None
    groups: int | None = None
    mean_examples: float | None = None
    problem: str = ""
    """What is wrong with a data set that exists."""
    origin: str = ""
    """The file that states mode and size."""
