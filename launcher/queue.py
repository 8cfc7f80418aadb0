"""Selects the jobs of a file to run: a runner's options, the checks before it starts, the list of --dry-run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UsageError
from engine.io import did_you_mean
from launcher.children import with_our_python
from launcher.gpus import gpus_needed
from launcher.jobs import Job, fault_of
from launcher.ledger import HOST, Ledger
from launcher.ranks import Ranks
from launcher.storage import stored_in

STATUS_HINTS = {
    "!": "failed (--failed takes it)",
    "x": "done (put [ ] to run it again)",
    "-": "running",
    " ": "still running",
}


@dataclass(frozen=True)
class Options:
    """The options of run_jobs.py."""

    cwd: Path
    logs: Path
    only: frozenset[str] = frozenset()
    """ids, keys or L<line>; empty: all"""
    jobs: int = 1
    gpus: tuple[str, ...] | None = None
    """None: CUDA_VISIBLE_DEVICES is unchanged"""
    retries: int = 0
    once: bool = False
    failed: bool = False
    take_over: frozenset[str] = frozenset()
    """hosts whose runners will not come back"""
    ranks: Ranks | None = None
    """None: as many processes as the command says"""

    @property
    def marks(self) -> str:
        """The marks of lines to run."""
        return " !" if self.failed else " "

    def selects(self, job: Job) -> bool:
        """Whether --only names this job (or is not given)."""
        return not self.only or bool(self.only & names_of(job))

    def words_of(self, job: Job) -> tuple[str, ...]:
        """The words of the command as started."""
        return job.argv if self.ranks is None else self.ranks.words(job.argv)

    def gpus_for(self, job: Job) -> int:
        """How many of --gpus the job needs."""
        return 0 if self.gpus is None else gpus_needed(job.argv, len(self.gpus), self.cwd)


def names_of(job: Job) -> set[str]:
    """The names of a job that --only accepts."""
    return {job.id, job.key, f"L{job.line_number}"}


def check_only(ledger: Ledger, options: Options) -> None:
    """Raises: UsageError if --only names a job that is not in the file."""
    jobs = ledger.read().jobs
    for name in options.only:
        if not any(name in names_of(job) for job in jobs):
            hint = did_you_mean(name, {job.id for job in jobs})
            raise UsageError(f"--only {name}: {ledger.path.name} has no such job: {hint}")


def check(ledger: Ledger, options: Options) -> None:
    """Refuse jobs that would not run as written. Raises: UsageError."""
    file, name = ledger.read(), ledger.path.name
    for number, text in file.problems:
        raise UsageError(f"{name} line {number}: {text}")
    seen: dict[tuple[str, str | None], int] = {}
    folders: dict[str, int] = {}
    for job in file.jobs:
        if not options.selects(job) or job.mark not in " -" + options.marks:
            continue
        if why := fault_of(job):
            raise UsageError(f"{name} line {job.line_number}: {why}")
        run = (job.id, None if job.label else job.value("project_name"))
        if run in seen:
            raise UsageError(f"{name} lines {seen[run]} and {job.line_number} are both {job.id}: run names must differ")
        seen[run] = job.line_number
        folder = stored_in(job)
        if folder is not None and not job.resumes:
            if folder in folders:
                raise UsageError(
                    f"{name} lines {folders[folder]} and {job.line_number} both write to {folder}: one each"
                )
            folders[folder] = job.line_number
        if options.gpus is not None and (need := options.gpus_for(job)) > len(options.gpus):
            raise UsageError(f"{job.id} (line {job.line_number}) needs {need} GPUs, --gpus names {len(options.gpus)}")


def waiting(ledger: Ledger, options: Options) -> list[Job]:
    """The jobs that a runner would run, in order."""
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
    jobs = ledger.read().jobs
    named = [job for job in jobs if options.only and options.selects(job)]
    hints = [f"; {job.id} is {STATUS_HINTS[job.mark]}" for job in named]
    failed = 0 if options.only else sum(job.mark == "!" for job in jobs)
    hints += [f"; {failed} failed (--failed takes {'it' if failed == 1 else 'them'})"] * bool(failed)
    return f"nothing to do in {ledger.path.name}" + "".join(hints)


def unknown_owners(ledger: Ledger) -> list[str]:
    """One line for each job marked as running whose runner this host cannot check."""
    lines = []
    for job in ledger.read().jobs:
        if job.mark == "-" and ledger.owner_alive(job) is None:
            host = job.owner[1] if job.owner else None
            hint = f"--take-over {host} if it is gone" if host else "put [ ] if nobody runs it"
            lines.append(f"{job.id} is marked [-] by {host or 'nobody named'}, not by {HOST}: {hint}")
    return lines
