"""Tables of a report: formatted columns, as Markdown that is also readable on a terminal, or as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ABSENT = "-"


@dataclass(frozen=True)
class Column:
    """A heading and the format of the values below it.

    text: as it is; number: `digits` decimals, with a sign if `signed`; interval: `low .. high`, always with signs. None
    is a dash, and empty in CSV.
    """

    heading: str
    kind: Literal["text", "number", "interval"] = "text"
    digits: int = 3
    signed: bool = False

    def show(self, value: Any) -> str:
        if value is None:
            return ABSENT
        if self.kind == "interval":
            low, high = value
            return f"{low:+.{self.digits}f} .. {high:+.{self.digits}f}"
        if self.kind == "number":
            return f"{value:{'+' if self.signed else ''}.{self.digits}f}"
        return str(value)


@dataclass
class Table:
    """Rows of values under columns."""

    columns: Sequence[Column]
    rows: list[Sequence[Any]] = field(default_factory=list)

    def add(self, *values: Any) -> None:
        """Append a row. Raises: ValueError unless there is a value for each column."""
        if len(values) != len(self.columns):
            raise ValueError(f"{len(values)} values for {len(self.columns)} columns")
        self.rows.append(values)

    def markdown(self) -> str:
        """The table as Markdown, with padded columns so that it is also readable on a terminal."""
        shown = [[column.heading for column in self.columns]]
        shown += [[column.show(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]
        escaped = [[_one_line(text) for text in row] for row in shown]
        widths = [max(map(len, texts)) for texts in zip(*escaped, strict=True)]
        padded = ([text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in escaped)
        lines = [f"| {' | '.join(row)} |" for row in padded]
        return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])

    def csv(self) -> str:
        """The table as CSV in full precision; an interval takes two columns."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        headings = [
            [f"{column.heading} low", f"{column.heading} high"] if column.kind == "interval" else [column.heading]
            for column in self.columns
        ]
        writer.writerow([heading for each in headings for heading in each])
        for row in self.rows:
            cells = (
                (value or (None, None)) if column.kind == "interval" else (value,)
                for column, value in zip(self.columns, row, strict=True)
            )
            writer.writerow([cell for each in cells for cell in each])
        return stream.getvalue()


def _one_line(text: str) -> str:
    """Text escaped for a cell of the table."""
    return " ".join(text.split()).replace("|", "\\|")
