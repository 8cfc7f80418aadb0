"""Claims on the jobs of a file that several runners share, safe against kill -9.

The state of `jobs/jobs-trm.txt` is in `jobs/.jobs-trm.txt.state/`: `lock` is held for the milliseconds of an edit,
`<key>.lock` for as long as the job runs, `<key>.json` records its attempts, `<key>.run` names its run directory. The
job's own process inherits `<key>.lock`, so the lock outlives a killed runner and shows whether the job still runs; the
kernel releases it with the last holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from engine.errors import UsageError
from engine.io import atomic_write_bytes, file_lock
from engine.run.files import read_json
from launcher.children import Child, process_alive, start_time
from launcher.jobs import MARKS, Job, JobFile, read

HOST = socket.gethostname()
Test = Callable[[Job], bool]


@dataclass
class Record:
    """A job's attempts, as stored in `<key>.json`."""

    id: str = ""
    command: str = ""
    runner: int | None = None
    """pid of the runner that started the last attempt, on `host`"""
    host: str = ""
    runner_started: str | None = None
    """when the runner started, in the kernel's clock ticks: pids are reused"""
    state: str = ""
    started: float | None = None
    """seconds since the epoch"""
    ended: float | None = None
    attempts: int = 0
    log: str = ""
    log_offset: int = 0
    """where the last attempt starts in the log, in bytes"""
    child: int | None = None
    gpus: list[str] = field(default_factory=list)
    exit_code: int | None = None
    run_dir: str | None = None
    step: int | None = None
    message: str = ""


@dataclass
class Claim:
    """A job that this runner has claimed."""

    job: Job
    handle: int
    """descriptor of `<key>.lock`: locked by us, or, for an orphan, by the job itself"""
    orphan: bool
    """the job still runs, started by a runner that is gone"""
    record: Record
    taken_over: bool = False
    """the mark was of a runner that is gone"""
    child: Child | None = None
    """set once we have started it; an orphan is watched through its lock"""
    attempt: int = 0
    """how often we have started it"""
    stop_sent: bool = False


@dataclass
class Ledger:
    """The job file and its state folder."""

    path: Path
    pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        self.path = self.path.resolve()  # a link stays a link: its target is rewritten
        self.folder = self.path.parent / f".{self.path.name}.state"

    # --- reading

    def read(self) -> JobFile:
        """The file as it is now. Raises: UsageError if it cannot be read."""
        return read(self.path)

    def record(self, job: Job) -> Record:
        """The record of the job's attempts; an empty one if there was none."""
        stored = read_json(self.folder / f"{job.key}.json")
        return Record(**{one.name: stored[one.name] for one in fields(Record) if one.name in stored})

    def write_record(self, job: Job, record: Record) -> None:
        """Store `record` for the job."""
        text = json.dumps(asdict(record), indent=2) + "\n"  # ASCII: a command need not be valid UTF-8
        atomic_write_bytes(self.folder / f"{job.key}.json", text.encode("ascii"))

    def report_file(self, job: Job) -> Path:
        """The file into which the job's run writes the path of its run directory."""
        return self.folder / f"{job.key}.run"

    def owner_alive(self, job: Job) -> bool | None:
        """Whether the runner named in a [-] mark is alive; None if it is on another host or not named."""
        if job.owner is None or job.owner[1] not in (None, HOST):
            return None
        record = self.record(job)
        started = record.runner_started if record.runner == job.owner[0] else None
        return process_alive(job.owner[0], started)

    def is_stale(self, job: Job, hosts: frozenset[str]) -> bool:
        """Whether the runner of a [-] line is gone: it is dead on this host, or its host is in `hosts`."""
        if job.owner is not None and job.owner[1] in hosts and job.owner[1] != HOST:
            return True
        return job.mark == "-" and self.owner_alive(job) is False

    # --- changing

    def claim(
        self, accepts: Test, *, fits: Test = lambda job: True, marks: str = " ", hosts: frozenset[str] = frozenset()
    ) -> Claim | None:
        """Claim the first job that may run now; None if there is none (or the first one does not `fit`).

        A job may run if its mark is in `marks`, or is [-] and stale (see `is_stale`).
        """
        with self._locked():
            for job in self.read().jobs:
                if job.error or not accepts(job):
                    continue
                stale = self.is_stale(job, hosts)
                if not stale and job.mark not in marks:
                    continue
                handle = self._open_lock(job)
                orphan = not _try_lock(handle)
                if orphan and not stale:  # the line was edited by hand while the job was running
                    os.close(handle)
                    continue
                if not orphan and not fits(job):
                    os.close(handle)
                    return None
                record = self.record(job)
                if not stale:  # values of an earlier attempt must not be taken for this one's
                    record.started = record.ended = record.child = None
                record.id, record.command = job.id, job.command
                record.runner, record.host, record.runner_started = self.pid, HOST, start_time(self.pid)
                self.write_record(job, record)
                self._mark(job, "-")
                return Claim(job, handle, orphan, record, taken_over=stale)
        return None

    def release(self, claim: Claim, state: str) -> bool:
        """Write the job's state and release its lock. False if its line is gone from the file."""
        with self._locked():
            try:
                line = self._find(claim.job)
            except UsageError:  # the whole file is gone: so is the line
                line = None
            if line is not None:
                self._mark(line, MARKS[state])
            with contextlib.suppress(OSError):
                fcntl.flock(claim.handle, fcntl.LOCK_UN)  # processes left behind by the job have inherited it
            os.close(claim.handle)
        return line is not None

    def adopt(self, claim: Claim) -> bool:
        """Take the lock of an orphan once its process has ended. False if it still runs."""
        return _try_lock(claim.handle)

    def append(self, text: str, ids: set[str]) -> None:
        """Append the lines of `text`, whose jobs have the `ids`. Raises: UsageError if the file has one of them."""
        with self._locked():
            file = self.read()
            for job in file.jobs:
                if job.id in ids:
                    raise UsageError(f"{self.path.name} line {job.line_number} has a job {job.id} already")
            gap = "" if not file.text or file.text.endswith("\n") else "\n"
            self._write(file.text + gap + text)

    # --- inside

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with file_lock(self.folder / "lock", wait=True):
                yield
        except PermissionError as error:
            raise UsageError(f"{error.filename or self.folder} cannot be written: runners need it") from None

    def _open_lock(self, job: Job) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        return os.open(self.folder / f"{job.key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _find(self, job: Job) -> Job | None:
        """The current line of a job that we run: lines may have moved, marks and even the command may be edited."""
        jobs = self.read().jobs
        ours = [other for other in jobs if other.mark == "-" and other.owner == (self.pid, HOST)]
        running = [other for other in jobs if other.mark == "-"]
        same = [other for group in (ours, running) for other in group if other.command == job.command]
        same += [other for other in ours if other.id == job.id and other.label is not None]
        return next(iter(same + [other for other in jobs if other.command == job.command]), None)

    def _mark(self, job: Job, mark: str) -> None:
        """Rewrite the line of `job` (just read, under the lock); all other bytes of the file are unchanged."""
        lines = self.read().text.split("\n")
        line = lines[job.line_number - 1]
        before, after = line[: line.index("[")], line[len(line.rstrip("\r")) :]
        owner = f" [{self.pid}@{HOST}]" if mark == "-" else ""
        blank = line[len(before) + 3 : line.index(job.command, len(before) + 3)]
        lines[job.line_number - 1] = f"{before}[{mark}]{blank}{job.command}{owner}{after}"
        self._write("\n".join(lines))

    def _write(self, text: str) -> None:
        mode = self.path.stat().st_mode & 0o777
        atomic_write_bytes(self.path, text.encode("utf-8", "surrogateescape"))
        with contextlib.suppress(PermissionError):
            self.path.chmod(mode)  # a shared file stays writable for others


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
