"""What a run and the process that started it (`launcher/`) tell each other, through the environment.

A parent names a file for the run's directory; a sweep also names the job, which makes a process a job of a sweep.
"""

from __future__ import annotations

import os
from pathlib import Path

from engine.io import atomic_write_text

REPORT = "LOOPFORGE_JOB_REPORT"
"""The file into which a run writes its run directory, for its parent."""
SUFFIX = "LOOPFORGE_JOB_SUFFIX"
"""Set for each job of a sweep: appended to a run name that is made of the identity, to tell what was swept."""
SWEEP = "LOOPFORGE_SWEEP"
"""Set in the process of a sweep and in its workers: the folder to which its jobs report."""
FULL_ERROR = "HYDRA_FULL_ERROR"
SET_FULL_ERROR = "LOOPFORGE_SET_FULL_ERROR"
"""Set when FULL_ERROR was set by us and not by the user: a child does not inherit it."""


def is_sweep_job() -> bool:
    """Whether this process is a job that a sweep started."""
    return SUFFIX in os.environ


def report_run_dir(run_dir: Path) -> None:
    """Tell the parent which run directory this process uses. Nothing where no parent asked for it."""
    if REPORT in os.environ:
        atomic_write_text(os.environ[REPORT], str(run_dir.resolve()))
