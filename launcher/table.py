"""Formats tables as aligned text for a terminal or a log, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.io import print_rank0

Rows = Sequence[Sequence[str]]


def aligned(head: Sequence[str], rows: Rows) -> list[str]:
    """One line per row, columns padded to their widest cell."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows))
    return [line.rstrip() for line in lines]


def csv_text(head: Sequence[str], rows: Rows) -> str:
    """The table as CSV, with a heading."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def markdown(head: Sequence[str], rows: Rows) -> str:
    """The table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def print_table(head: Sequence[str], rows: Rows) -> None:
    """Print the table: with rules on a terminal, rows whose state is not `done` in yellow; plain in a log."""
    if not sys.stdout.isatty():
        for line in ("", *aligned(head, rows)):
            print_rank0(line)
        return
    from rich.console import Console
    from rich.table import Table

    pretty = Table(*head)
    for row in rows:
        pretty.add_row(*row, style="" if "done" in row or "state" not in head else "yellow")
    Console().print(pretty)


def short_path(path: str | Path | None, base: Path | None = None) -> str:
    """`path` relative to `base` (default: the working directory) if it is inside; empty for None."""
    if path is None:
        return ""
    base = base or Path.cwd()
    inside = any(Path(path).is_relative_to(place) for place in (base, base.resolve()))
    return os.path.relpath(path, base) if inside else str(path)
