"""--status: the table of a job file, with what is remembered of each job and where its run stands."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from engine.run.files import read_json
from launcher.jobs import STATES, Job
from launcher.ledger import Ledger
from launcher.outcome import find_run

HEADINGS = ("id", "state", "step", "tries", "time", "where", "note")


def table(ledger: Ledger, cwd: Path) -> list[str]:
    """The lines to print: a heading, one line a job, the counts."""
    jobs = ledger.read().jobs
    rows = [HEADINGS, *(_row(ledger, job, cwd) for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS) - 2)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, *row[len(widths) :]]).rstrip())
    counts = [f"{sum(job.mark == mark for job in jobs)} {name}" for mark, name in STATES.items()]
    return [*lines, ", ".join(counts)]


def _row(ledger: Ledger, job: Job, cwd: Path) -> tuple[str, ...]:
    record = ledger.record(job)
    note = str(record.get("message") or "")
    state = f"[{job.mark}] {job.state}"
    if job.error:
        note = job.error
    elif job.mark == "-":
        alive = ledger.owner_alive(job)
        owner = "nobody named" if job.owner is None else f"{job.owner[0]}@{job.owner[1] or 'here'}"
        note = {True: owner, None: f"{owner}, not of this host"}.get(alive, f"{owner} is gone, will be taken over")
    log = Path(str(record["log"])) if record.get("log") else None
    run_dir = record.get("run_dir") or (find_run(job, cwd, log, int(record.get("log_offset", 0))) if log else None)
    step = read_json(cwd / run_dir / "status.json").get("step") if run_dir else None
    return (
        job.id, state, _text(step), _text(record.get("attempts")), _duration(record, job.mark == "-"),
        str(run_dir or (os.path.relpath(log, cwd) if log else "-")), note,
    )  # fmt: skip


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _duration(record: dict[str, Any], running: bool) -> str:
    began, ended = record.get("started"), record.get("ended")
    if not isinstance(began, int | float):
        return "-"
    end = ended if isinstance(ended, int | float) else time.time() if running else None
    if end is None:
        return "-"
    seconds = int(end - began)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
