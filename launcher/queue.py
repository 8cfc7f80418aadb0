"""What to run of a job file: the options of a runner, the checks before it starts, the list of --dry-run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UsageError
from engine.io import did_you_mean
from launcher.children import with_our_python
from launcher.gpus import gpus_needed
from launcher.jobs import Job, for_a_shell
from launcher.ledger import HOST, Ledger
from launcher.ranks import Ranks

STATUS_HINTS = {
    "!": "failed (--failed takes it)",
    "x": "done (put [ ] to run it again)",
    "-": "running",
    " ": "still running",
}


@dataclass(frozen=True)
class Options:
    """What run_jobs.py was asked to do."""

    cwd: Path
    logs: Path
    only: frozenset[str] = frozenset()
    """ids, keys or L<line>; empty: all"""
    jobs: int = 1
    gpus: tuple[str, ...] | None = None
    """None: CUDA_VISIBLE_DEVICES is left alone"""
    retries: int = 0
    once: bool = False
    failed: bool = False
    take_over: frozenset[str] = frozenset()
    """hosts whose runners are gone for good"""
    ranks: Ranks | None = None
    """None: as many processes as the command asks for"""

    @property
    def marks(self) -> str:
        """The marks of lines that are taken."""
        return " !" if self.failed else " "

    def selects(self, job: Job) -> bool:
        """Whether --only names this job (or names none)."""
        return not self.only or bool(self.only & names_of(job))

    def words_of(self, job: Job) -> tuple[str, ...]:
        """The command as it is started."""
        return job.argv if self.ranks is None else self.ranks.words(job.argv)

    def gpus_for(self, job: Job) -> int:
        """How many of --gpus the job takes."""
        return 0 if self.gpus is None else gpus_needed(job.argv, len(self.gpus), self.cwd)


def names_of(job: Job) -> set[str]:
    """What --only may call a job."""
    return {job.id, job.key, f"L{job.line_number}"}


def check_only(ledger: Ledger, options: Options) -> None:
    """Raises: UsageError where --only names a job that is not in the file."""
    jobs = ledger.read().jobs
    for name in options.only:
        if not any(name in names_of(job) for job in jobs):
            hint = did_you_mean(name, {job.id for job in jobs})
            raise UsageError(f"--only {name}: {ledger.path.name} has no such job: {hint}")


def check(ledger: Ledger, options: Options) -> None:
    """Refuse what would not run as it is written. Raises: UsageError."""
    file, name = ledger.read(), ledger.path.name
    for number, text in file.problems:
        raise UsageError(f"{name} line {number}: {text}")
    seen: dict[tuple[str, str | None], int] = {}
    folders: dict[str, int] = {}
    for job in file.jobs:
        if not options.selects(job) or job.mark not in " -" + options.marks:
            continue
        if why := job.error or for_a_shell(job):
            raise UsageError(f"{name} line {job.line_number}: {why}")
        run = (job.id, None if job.label else job.value("project_name"))
        if run in seen:
            raise UsageError(f"{name} lines {seen[run]} and {job.line_number} are both {job.id}: run names must differ")
        seen[run] = job.line_number
        folder = job.value("run_dir") or job.value("out_dir")
        if folder and "$" not in folder and not job.resumes:
            if folder in folders:
                raise UsageError(
                    f"{name} lines {folders[folder]} and {job.line_number} both write to {folder}: one each"
                )
            folders[folder] = job.line_number
        if options.gpus is not None and (need := options.gpus_for(job)) > len(options.gpus):
            raise UsageError(f"{job.id} (line {job.line_number}) needs {need} GPUs, --gpus names {len(options.gpus)}")


def waiting(ledger: Ledger, options: Options) -> list[Job]:
    """The jobs that a runner would take, in order."""
    jobs = [job for job in ledger.read().jobs if job.error is None and options.selects(job)]
    return [job for job in jobs if job.mark in options.marks or ledger.is_stale(job, options.take_over)]


def describe(number: int, job: Job, options: Options) -> str:
    """One line of --dry-run."""
    gpus = f" gpus={options.gpus_for(job)}" if options.gpus is not None else ""
    prefix = "".join(f"{name}={shlex.quote(value)} " for name, value in job.env.items())
    command = f"{prefix}{shlex.join(with_our_python(options.words_of(job)))}".encode("utf-8", "replace").decode()
    return f"{number}. {job.id} (line {job.line_number}){gpus}: {command}"


def nothing_to_do(ledger: Ledger, options: Options) -> str:
    """Why nothing was started."""
    asked = [job for job in ledger.read().jobs if options.only and options.selects(job)]
    return f"nothing to do in {ledger.path.name}" + "".join(f"; {job.id} is {STATUS_HINTS[job.mark]}" for job in asked)


def left_to_others(ledger: Ledger) -> list[str]:
    """One line for each job that is marked as running, by nobody of whom this host knows whether he lives."""
    lines = []
    for job in ledger.read().jobs:
        if job.mark == "-" and ledger.owner_alive(job) is None:
            host = job.owner[1] if job.owner else None
            hint = f"--take-over {host} if it is gone" if host else "put [ ] if nobody runs it"
            lines.append(f"{job.id} is marked [-] by {host or 'nobody named'}, not by {HOST}: {hint}")
    return lines
