"""--status: the table of a job file, with what is remembered of each job and where its run stands."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from engine.run.files import read_json
from launcher.jobs import STATES, Job
from launcher.ledger import Ledger, Record
from launcher.outcome import reported_run_dir
from launcher.table import aligned, short_path

HEAD = ("id", "state", "step", "tries", "time", "where", "note")


def status_lines(ledger: Ledger, cwd: Path) -> list[str]:
    """The lines to print: a heading, one line a job, the counts."""
    jobs = ledger.read().jobs
    counts = [f"{sum(job.mark == mark for job in jobs)} {name}" for mark, name in STATES.items()]
    return [*aligned(HEAD, [_row(ledger, job, cwd) for job in jobs]), ", ".join(counts)]


def _row(ledger: Ledger, job: Job, cwd: Path) -> list[str]:
    record = ledger.record(job)
    run_dir: Path | None = None
    if record.log:  # there was an attempt
        run_dir = cwd / record.run_dir if record.run_dir else reported_run_dir(ledger.report_file(job))
    step = read_json(run_dir / "status.json").get("step") if run_dir else None
    where = short_path(run_dir, cwd) or (os.path.relpath(record.log, cwd) if record.log else "-")
    state, tries = f"[{job.mark}] {job.state}", _text(record.attempts or None)
    return [job.id, state, _text(step), tries, _duration(record, job.mark == "-"), where, _note(ledger, job, record)]


def _note(ledger: Ledger, job: Job, record: Record) -> str:
    if job.error or job.mark != "-":
        return job.error or record.message
    owner = "nobody named" if job.owner is None else f"{job.owner[0]}@{job.owner[1] or 'here'}"
    alive = ledger.owner_alive(job)
    return {True: owner, None: f"{owner}, not of this host"}.get(alive, f"{owner} is gone, will be taken over")


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _duration(record: Record, running: bool) -> str:
    end = record.ended if record.ended is not None else time.time() if running else None
    if record.started is None or end is None:
        return "-"
    seconds = int(end - record.started)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
