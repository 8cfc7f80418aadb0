"""Where a job stores its run, as far as the words of its command say."""

from __future__ import annotations

import os
from pathlib import Path

from engine.registry import FAMILIES, family_of
from launcher.command import parse
from launcher.jobs import Job


def folder_key(job: Job) -> str | None:
    """The key that holds a run's folder: `out_dir` of train.py, `output_dir` of train_animal.py.

    None for other programs, and for scripts whose folders contain the run's name.
    """
    entry = _entry(job)
    return family_of(entry, entry).schema.FOLLOWS.get("run_dir") if entry else None


def stored_in(job: Job) -> str | None:
    """The folder of the job's run, or words for the default that its recipe has; None if names or times tell it apart.

    Jobs with the same answer store their runs in one folder.
    """
    entry = _entry(job)
    key = folder_key(job) if entry else "out_dir"
    if folder := job.value("run_dir") or (job.value(key) if key else None):
        return None if "$" in folder else os.path.normpath(Path(folder).expanduser())
    if key is None or not entry or "-m" in job.argv or "--multirun" in job.argv or job.value("config"):
        return None
    return f"the {key} of {job.value('config_name') or f'{entry}.py'}"


def _entry(job: Job) -> str:
    """The entry script of ours that the job runs, without .py; empty if none."""
    entry = Path(parse(job.argv).script or "").stem
    return entry if entry in FAMILIES else ""
