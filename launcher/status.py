"""--status: the table of a job file, with each job's record and the progress of its run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.run.files import read_json
from launcher.jobs import STATES, Job, find
from launcher.ledger import Ledger, Record
from launcher.outcome import reported_run_dir
from launcher.table import aligned, short_path

HEAD = ("id", "state", "step", "tries", "time", "where", "note")


def status_lines(ledger: Ledger, cwd: Path) -> list[str]:
    """The lines to print: a heading, one line per job, the counts."""
    jobs = ledger.read().jobs
    counts = [f"{sum(job.mark == mark for job in jobs)} {name}" for mark, name in STATES.items()]
    return [*aligned(HEAD, [_row(ledger, job, cwd) for job in jobs]), ", ".join(counts)]


def expand_places(places: Sequence[Path], *, roots: Sequence[Path], cwd: Path) -> list[Path]:
    """`places` of runs, with a job file (`jobs-trm.txt`) replaced by the runs of its jobs.

    Raises: UsageError for a job file that does not exist, has no job or has started no run.
    """
    expanded: list[Path] = []
    for place in places:
        if place.suffix != ".txt" and not place.is_file():
            expanded.append(place)
            continue
        ledger = Ledger(find(place, roots))
        if not ledger.read().jobs:
            raise UsageError(f"{place} has no job: expected a run, a folder of runs or of a sweep, or a job file")
        folders = run_folders(ledger, cwd)
        if not folders:
            raise UsageError(f"{place}: no job of this file has a run directory below {cwd} yet")
        expanded += folders
    return expanded


def run_folders(ledger: Ledger, cwd: Path) -> list[Path]:
    """The run directories of the started jobs, in the order of the file."""
    folders = (_run_dir(ledger, job, ledger.record(job), cwd) for job in ledger.read().jobs)
    return [folder for folder in folders if folder is not None and folder.is_dir()]


def _run_dir(ledger: Ledger, job: Job, record: Record, cwd: Path) -> Path | None:
    if not record.log:  # there was no attempt
        return None
    return cwd / record.run_dir if record.run_dir else reported_run_dir(ledger.report_file(job))


def _row(ledger: Ledger, job: Job, cwd: Path) -> list[str]:
    record = ledger.record(job)
    run_dir = _run_dir(ledger, job, record, cwd)
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
