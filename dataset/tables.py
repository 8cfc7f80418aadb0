"""Tables supplied by users: separators, files that are not UTF-8 text, repeated columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.io import UsageError

SEPARATORS = ",;\t|"
"""Separators of the cells of a row."""
# First bytes of a file -> what it is.
FOREIGN = {
    b"\xff\xfe": "UTF-16 text (byte order mark FF FE): save it as UTF-8",
    b"\xfe\xff": "UTF-16 text (byte order mark FE FF): save it as UTF-8",
    b"\x1f\x8b": "a gzip file: unpack it first",
    b"BZh": "a bzip2 file: unpack it first",
    b"\xfd7zXZ": "an xz file: unpack it first",
    b"PK\x03\x04": "a zip or Excel file: unpack it, or save the table as CSV",
    b"PAR1": "a Parquet file: save the table as CSV",
}


def refuse_foreign(path: Path) -> None:
    """Raise UsageError if a file is not UTF-8 text, naming what it is and what to do. Raises: OSError."""
    with open(path, "rb") as stream:
        head = stream.read(4096)
    kind = next((kind for mark, kind in FOREIGN.items() if head.startswith(mark)), None)
    if kind is None and b"\0" in head:
        kind = "not UTF-8 text (it has NUL bytes, as UTF-16 has): save it as UTF-8"
    if kind is not None:
        raise UsageError(f"{path} is {kind}")


def refuse_twice(place: str, names: Sequence[str], used: Sequence[str]) -> None:
    """Raise UsageError, beginning with `place`, if one of the `used` columns is twice in the header."""
    if twice := next((name for name in used if names.count(name) > 1), None):
        raise UsageError(f"{place}: {names.count(twice)} columns are called {twice}: which one counts?")
