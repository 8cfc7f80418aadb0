"""Sinks for metrics: JSONL, CSV and console. A sink has one `write(step, values)`; if it fails, it is dropped with one
warning.

Those for TensorBoard and Weights & Biases are in `engine/loggers/trackers.py`.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from engine.errors import FULL
from engine.io import atomic_write_text, print_rank0
from engine.reading import Unreadable, open_regular, parse_json
from engine.run.files import finite

Values = Mapping[str, Any]
"""name -> number, null, or a table (a list of rows, each column -> number or text)."""


class Sink(Protocol):
    """One destination of metrics; only rank 0 has any."""

    def write(self, step: int, values: Values) -> None: ...

    def close(self) -> None: ...


class WholeFile:
    """A file to which only whole lines or records are appended: a full disk leaves no partial one."""

    def __init__(self, path: Path) -> None:
        if path.is_symlink():  # it may lead out of the run directory
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append without buffering. Raises: OSError if the disk is full."""
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()


class JsonlSink:
    """One JSON object per line: the primary record of a run, with all digits; null if nothing was counted."""

    def __init__(self, path: Path) -> None:
        self._lines = WholeFile(path)

    def write(self, step: int, values: Values) -> None:
        # null instead of NaN; train/skipped_steps explains it
        self._lines.write((json.dumps(finite({"step": step, **values})) + "\n").encode())

    def close(self) -> None:
        self._lines.close()


def _rows(record: Path) -> list[dict[str, Any]]:
    """The valid lines of metrics.jsonl; damaged ones are left out, with a warning."""
    if not record.exists():
        return []
    rows, damaged = [], 0
    with open_regular(record) as stream:
        for line in stream:
            try:
                row = parse_json(line)
            except Unreadable:
                row = None
            if isinstance(row, dict):
                rows.append({name: value for name, value in row.items() if not isinstance(value, list)})
            else:
                damaged += 1
    if damaged:
        print_rank0(f"warning: {damaged} line(s) of {record} are damaged and missing from metrics.csv")
    return rows


class CsvSink:
    """metrics.jsonl as one table: a row for each line, a column for each name, empty if a line lacks it.

    It starts with the contents of metrics.jsonl, which a resume has already truncated, so the two always agree. A new
    name adds a column, for which the whole table is rewritten.
    """

    def __init__(self, path: Path, record: Path) -> None:
        self._path, self._columns = path, ["step"]
        rows = _rows(record)
        self._rewrite(rows, [name for row in rows for name in row])

    def write(self, step: int, values: Values) -> None:
        row = finite({"step": step, **values})
        if row.keys() <= set(self._columns):
            self._lines.write(self._text([row], self._columns).encode())
        else:
            with self._path.open(encoding="utf-8", newline="") as stream:
                rows: list[dict[str, Any]] = list(csv.DictReader(stream))
            lines = self._lines
            self._rewrite([*rows, row], list(row))
            lines.close()

    def _rewrite(self, rows: list[dict[str, Any]], names: list[str]) -> None:
        columns = list(dict.fromkeys([*self._columns, *names]))
        head = dict(zip(columns, columns, strict=True))
        atomic_write_text(self._path, self._text([head, *rows], columns))
        self._columns, self._lines = columns, WholeFile(self._path)

    def _text(self, rows: list[dict[str, Any]], columns: list[str]) -> str:
        buffer = io.StringIO()
        csv.DictWriter(buffer, columns, lineterminator="\n").writerows(rows)
        return buffer.getvalue()

    def close(self) -> None:
        self._lines.close()


class ConsoleSink:
    """Human-readable lines. A long run prints at most one every 2 s, and all evaluations (see also `ProgressBar`)."""

    SHORT_RUN = 30  # with so few steps every one has its line
    PAUSE_S = 2.0
    COLUMNS = 140  # of values, whatever the width of the terminal

    def __init__(self, total_steps: int, steps_per_epoch: int | None = None) -> None:
        self._total, self._epoch = total_steps, steps_per_epoch
        self._last = 0.0

    def write(self, step: int, values: Values) -> None:
        evaluation = any(name.startswith(("eval/", "val/")) for name in values)
        now = time.monotonic()
        quiet = self._total > self.SHORT_RUN and now - self._last < self.PAUSE_S
        if quiet and not evaluation and step not in (1, self._total):
            return
        self._last = now
        head, tail = f"step {step:>{len(str(self._total))}}/{self._total}", self._pace(values)
        if self._epoch is not None:
            epoch, epochs = (-(-number // self._epoch) for number in (step, self._total))
            head = f"epoch {epoch:>{len(str(epochs))}}/{epochs}, {head}"
        # $COLUMNS, or the current width of the terminal. A narrow one shows the same values on more lines.
        width = max(40, shutil.get_terminal_size((self.COLUMNS, 0)).columns)
        room = max(self.COLUMNS, width) - len(head) - len(tail)  # values that do not fit are only in metrics.jsonl
        line = head
        for part, needed in self._parts(values):
            room -= 2 + len(part)
            if room < 0 and not needed:
                break
            if len(line) + 2 + len(part) + len(tail) > width:
                print_rank0(line + tail)
                line, tail = " " * len(head), ""
            line += f"  {part}"
        print_rank0(line + tail)

    @staticmethod
    def _parts(values: Values) -> list[tuple[str, bool]]:
        """(`name value`, whether the line must have it), in the task's order, without what only the file needs.

        The first value of each data set (`eval/SET/name`) comes right after the main one, and must be there.
        """
        shown = {name: value for name, value in values.items() if not name.endswith("_live") and name[:5] != "time/"}
        if not shown.get("train/skipped_steps"):
            shown.pop("train/skipped_steps", None)
        nested = [name for name in shown if name.startswith("eval/") and name.count("/") > 1]
        firsts = set({name.rpartition("/")[0]: name for name in reversed(nested)}.values())
        main = next((name for name in shown if name not in nested), None)
        order = sorted(shown, key=lambda n: 0 if n == main else 1 if n in firsts else 3 if n in nested else 2)
        return [(f"{n} {'-' if shown[n] is None else format(shown[n], '.4g')}", n in firsts) for n in order]

    @staticmethod
    def _pace(values: Values) -> str:
        rates = {name[5:-6]: value for name, value in values.items() if name[:5] == "time/" and name[-6:] == "_per_s"}
        unit, rate = next(reversed(rates.items()), ("", None))  # the last one is the finest unit
        text = "" if rate is None else f"  {rate:,.0f} {'ex' if unit == 'examples' else unit}/s"
        left = values.get("time/eta_s")
        return text if left is None else f"{text}  eta {int(left) // 60}:{int(left) % 60:02d}"

    def close(self) -> None:
        """Nothing to close."""


class Sinks:
    """All sinks of a run. On a full disk, values wait in memory for the next write; a sink that raises any other error
    is dropped. Either is reported once, and training continues.
    """

    def __init__(self) -> None:
        self._sinks: dict[str, tuple[Sink, list[tuple[int, Values]]]] = {}

    def add(self, name: str, make: Callable[[], Sink], hint: str = "") -> None:
        """Open a sink; one that cannot be opened is skipped with a warning that ends in `hint`."""
        try:
            self._sinks[name] = make(), []
        except Exception as error:
            print_rank0(f"warning: no {name} metrics ({_reason(error)}){hint}")

    def write(self, step: int, values: Values) -> None:
        """Write `values` to every sink that still works."""
        numbers = {name: value for name, value in values.items() if not isinstance(value, list)}
        for name, (sink, waiting) in list(self._sinks.items()):
            waiting.append((step, values if name in ("jsonl", "wandb") else numbers))
            try:
                _write_waiting(sink, waiting)
            except Exception as error:
                if getattr(error, "errno", None) not in FULL:
                    print_rank0(f"warning: {name} metrics stop here ({_reason(error)}), training continues")
                    del self._sinks[name]
                elif len(waiting) == 1:
                    print_rank0(f"warning: {name} metrics wait for room ({_reason(error)}), training continues")

    def close(self) -> None:
        """Close every sink; a failure to close is only reported."""
        for name, (sink, waiting) in self._sinks.items():
            try:
                _write_waiting(sink, waiting)
                sink.close()
            except Exception as error:
                print_rank0(f"warning: {name} metrics did not close ({_reason(error)})")
        self._sinks.clear()


def _write_waiting(sink: Sink, waiting: list[tuple[int, Values]]) -> None:
    while waiting:
        sink.write(*waiting[0])
        del waiting[0]


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
