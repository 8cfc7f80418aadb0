"""Tables that people keep: what a file is that is no text of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.io import UsageError

SEPARATORS = ",;\t|"
"""Between the cells of a row."""
# What a file begins with.
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
    """Raises: UsageError for a file that is no text in UTF-8, naming what it is and what to do; OSError."""
    with open(path, "rb") as stream:
        head = stream.read(4096)
    kind = next((kind for mark, kind in FOREIGN.items() if head.startswith(mark)), None)
    if kind is None and b"\0" in head:
        kind = "not UTF-8 text (it has NUL bytes, as UTF-16 has): save it as UTF-8"
    if kind is not None:
        raise UsageError(f"{path} is {kind}")


def refuse_twice(place: str, names: Sequence[str], used: Sequence[str]) -> None:
    """Raises: UsageError, beginning with `place`, where one of the `used` columns stands in the header twice."""
    if twice := next((name for name in used if names.count(name) > 1), None):
        raise UsageError(f"{place}: {names.count(twice)} columns are called {twice}: which one counts?")
