"""Data sets that a config names, as a family reads them (`Verification.data`)."""

from __future__ import annotations

from dataclasses import dataclass


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
