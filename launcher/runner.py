"""The loop of run_jobs.py: claim, start, watch, judge, write down. One thread; a job is a child process."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from engine.errors import UsageError
from engine.io import print_rank0
from engine.signals import install, restore
from launcher.jobs import Job
from launcher.ledger import HOST, Claim, Ledger, process_alive
from launcher.outcome import Outcome, judge

POLL_S = 0.1
NO_DEVICE = ("device=cpu", "--device=cpu", "--use_cpu")


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
    hosts: frozenset[str] = frozenset()

    @property
    def marks(self) -> str:
        """The marks of lines that are taken."""
        return " !" if self.failed else " "

    def wants(self, job: Job) -> bool:
        """Whether --only names this job (or names none)."""
        return not self.only or bool(self.only & {job.id, job.key, f"L{job.line_number}"})


def words_of(job: Job) -> list[str]:
    """The command to execute: python and torchrun are those of this interpreter, whatever PATH says."""
    first, *rest = job.argv
    if first in ("python", "python3"):
        return [sys.executable, *rest]
    if first == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", *rest]
    return [first, *rest]


def gpus_of(job: Job, pool: int) -> int:
    """How many GPUs the job takes: none on the CPU, torchrun's --nproc-per-node, else one."""
    words = list(job.argv)
    if any(word in NO_DEVICE for word in words) or ("--device", "cpu") in itertools.pairwise(words):
        return 0
    for number, word in enumerate(words):
        name, equals, value = word.replace("_", "-").partition("=")
        if name == "--nproc-per-node":
            value = value if equals else words[number + 1] if number + 1 < len(words) else ""
            return int(value) if value.isdigit() else pool  # gpu, auto: all that it sees
    return 1


@dataclass
class _Running:
    claim: Claim
    process: subprocess.Popen[bytes] | None
    """None: an orphan, watched by its lock"""
    log: Path
    offset: int
    started: float
    attempt: int
    gpus: tuple[str, ...] = ()
    told: bool = False

    @property
    def job(self) -> Job:
        return self.claim.job


@dataclass
class Runner:
    """Runs the jobs of one file until none is left for it, or a signal comes."""

    ledger: Ledger
    options: Options
    running: list[_Running] = field(default_factory=list)
    results: dict[str, int] = field(default_factory=lambda: {"done": 0, "failed": 0, "todo": 0})

    def __post_init__(self) -> None:
        self.stop: str | None = None
        self.started = 0
        self.skip: set[str] = set()
        self.last_step: dict[str, int | None] = {}

    def run(self) -> int:
        """The exit code: 0 all done, 1 a job failed, 3 stopped by a signal."""
        self._require_logs()
        with self._watching():
            while True:
                if self.stop is None:
                    self._start_more()
                else:
                    self._forward()
                if not self.running:
                    break
                time.sleep(POLL_S)
                for item in list(self.running):
                    self._look(item)
        if self.stop is not None:
            return 3
        return 1 if self.results["failed"] else 0

    def _require_logs(self) -> None:
        """Before any line is marked. Raises: UsageError where no log can be written."""
        folder = self.options.logs
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _no_log(folder, error) from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"--logs={folder} cannot be written (no permission): name another folder with --logs")

    # --- starting

    def _start_more(self) -> None:
        options = self.options
        while self.stop is None and len(self.running) < options.jobs and not (options.once and self.started):
            try:
                claim = self.ledger.claim(
                    lambda job: options.wants(job) and job.key not in self.skip,
                    fits=lambda job: self._need(job) <= len(self._free()), marks=options.marks, hosts=options.hosts,
                )  # fmt: skip
            except UsageError:
                if not self.running:
                    raise
                return  # the file cannot be read: first see the running jobs to their end
            if claim is None:
                return
            self.started += 1
            if claim.orphan:
                self._watch_orphan(claim)
            elif not self._settled(claim):
                self._start(claim, attempt=1)

    def _need(self, job: Job) -> int:
        return gpus_of(job, len(self.options.gpus or ())) if self.options.gpus is not None else 0

    def _free(self) -> list[str]:
        taken = {gpu for item in self.running for gpu in item.gpus}
        return [gpu for gpu in self.options.gpus or () if gpu not in taken]

    def _settled(self, claim: Claim) -> bool:
        """Whether a job whose runner was killed had come to its end all the same."""
        began = claim.record.get("started")
        if not claim.taken_over or not isinstance(began, int | float):
            return False
        log = Path(str(claim.record.get("log", "")))
        offset = int(claim.record.get("log_offset", 0))
        found = judge(claim.job, None, cwd=self.options.cwd, log=log, offset=offset, started=began)
        if found.state == "todo":
            print_rank0(f"{claim.job.id}: taken over from a runner that is gone")
            return False
        self._finish(_Running(claim, None, log, offset, began, 1), found)
        return True

    def _watch_orphan(self, claim: Claim) -> None:
        record = claim.record
        print_rank0(
            f"{claim.job.id}: still running (process {record.get('child')}) though its runner is gone: watching it"
        )
        self.running.append(
            _Running(
                claim, None, Path(str(record.get("log", ""))), int(record.get("log_offset", 0)),
                float(record.get("started", time.time())), 1, tuple(record.get("gpus") or ()),
            )
        )  # fmt: skip

    def _start(self, claim: Claim, attempt: int) -> None:
        job, options = claim.job, self.options
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **job.env}
        gpus: tuple[str, ...] = ()
        if options.gpus is not None:
            gpus = tuple(self._free()[: self._need(job)])
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        log = options.logs / f"{job.key}.log"
        started, total = time.time(), int(claim.record.get("attempts", 0)) + 1
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            stream = log.open("ab")
        except OSError as error:  # removed or forbidden meanwhile; other jobs may be running
            item = _Running(claim, None, log, 0, started, attempt)
            self._finish(item, Outcome("failed", False, str(_no_log(log, error)), UsageError.exit_code))
            return
        with stream:
            shown = job.command.encode("utf-8", "surrogateescape")
            head = f"=== attempt {total}, {time.strftime('%Y-%m-%d %H:%M:%S')}, {HOST}, gpus {','.join(gpus) or '-'}: "
            stream.write(head.encode() + shown + b"\n")
            stream.flush()
            offset = stream.tell()
            try:
                process = subprocess.Popen(
                    words_of(job), cwd=options.cwd, env=env, stdin=subprocess.DEVNULL, stdout=stream,
                    stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(claim.handle,),
                )  # fmt: skip
            except (OSError, ValueError) as error:
                process = None
                problem = getattr(error, "strerror", None) or str(error)
                stream.write(f"error: {job.argv[0]}: {problem}\n".encode(errors="replace"))
        claim.record |= {
            "state": "running", "started": started, "ended": None, "attempts": total, "log": str(log),
            "log_offset": offset, "child": process.pid if process else None, "gpus": list(gpus),
            "exit_code": None, "run_dir": None, "step": None, "message": "",
        }  # fmt: skip
        item = _Running(claim, process, log, offset, started, attempt, gpus)
        if process is None:
            self._finish(item, Outcome("failed", False, f"{job.argv[0]}: {problem}", 127))
            return
        self.running.append(item)
        self.ledger.write_record(job, claim.record)
        given = f", gpus {','.join(gpus)}" if gpus else ""
        print_rank0(f"{job.id}: started (process {process.pid}{given}), log {self._shown(log)}")

    # --- watching and ending

    def _look(self, item: _Running) -> None:
        """Deal with one job if it has ended."""
        if item.process is not None:
            code = item.process.poll()
            if code is None:
                return
        elif self.ledger.adopt(item.claim):
            code = None
        else:
            return
        self.running.remove(item)
        outcome = judge(
            item.job, code, cwd=self.options.cwd, log=item.log, offset=item.offset, started=item.started,
            stopping=item.told,
        )  # fmt: skip
        again = outcome.state == "failed" and outcome.retry and item.attempt <= self.options.retries
        if again and self.stop is None and item.process is not None:
            print_rank0(
                f"{item.job.id}: failed ({outcome.message}); trying again, {item.attempt} of {self.options.retries}"
            )
            self._start(item.claim, item.attempt + 1)
            return
        self._finish(item, outcome)

    def _finish(self, item: _Running, outcome: Outcome) -> None:
        job, record = item.job, item.claim.record
        record |= {
            "state": outcome.state, "ended": time.time(), "exit_code": outcome.exit_code,
            "run_dir": outcome.run_dir, "step": outcome.step, "message": outcome.message,
        }  # fmt: skip
        self.ledger.write_record(job, record)
        found = self.ledger.release(item.claim, outcome.state)
        if outcome.state == "todo" and self.stop is None:
            self._guard(job, outcome)
        if outcome.state == "failed":  # --failed takes it once, not for ever
            self.skip.add(job.key)
        self.results[outcome.state] += 1
        what = {"todo": "interrupted, back to [ ]", "done": "done", "failed": "FAILED"}[outcome.state]
        note = f" ({outcome.message})" if outcome.message else ""
        seconds = time.time() - item.started
        where = outcome.run_dir or self._shown(item.log)
        print_rank0(f"{job.id}: {what}{note} after {seconds:.0f} s: {where}")
        if not found:
            print_rank0(f"{job.id}: its line is no longer in {self.ledger.path.name}, nothing was marked")

    def _guard(self, job: Job, outcome: Outcome) -> None:
        """A job that is interrupted again and again goes on only as long as it gets further."""
        if job.key in self.last_step and (outcome.step or 0) <= (self.last_step[job.key] or 0):
            self.skip.add(job.key)
            print_rank0(f"{job.id}: interrupted twice at step {outcome.step or 0}: left for another runner")
        self.last_step[job.key] = outcome.step

    def _shown(self, path: Path) -> Path:
        return path.relative_to(self.options.cwd) if path.is_relative_to(self.options.cwd) else path

    # --- signals

    @contextmanager
    def _watching(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self.stop = self.stop or signal.Signals(number).name

        previous = install(note)
        try:
            yield
        finally:
            restore(previous)

    def _forward(self) -> None:
        """Tell each job once; torchrun passes it on to its ranks, which write a checkpoint."""
        for item in self.running:
            if item.told:
                continue
            item.told = True
            print_rank0(f"{item.job.id}: {self.stop}: asked to stop, waiting for its checkpoint")
            if item.process is not None:
                item.process.send_signal(signal.SIGTERM)
            elif (child := item.claim.record.get("child")) and process_alive(int(child)):
                os.kill(int(child), signal.SIGTERM)


def _no_log(place: Path, error: OSError) -> UsageError:
    return UsageError(f"the log {place} cannot be written ({error.strerror}): name another folder with --logs")


def plan(ledger: Ledger, options: Options, speak: Callable[[str], None] = print) -> int:
    """--dry-run: what would be run, in which order. Returns how many."""
    pool = len(options.gpus or ())
    chosen = [
        job for job in ledger.read().jobs
        if job.error is None and options.wants(job)
        and (job.mark in options.marks or (job.mark == "-" and ledger.owner_alive(job) is False))
    ]  # fmt: skip
    for number, job in enumerate(chosen, 1):
        gpus = f" gpus={gpus_of(job, pool)}" if options.gpus is not None else ""
        prefix = "".join(f"{name}={shlex.quote(value)} " for name, value in job.env.items())
        command = f"{prefix}{shlex.join(words_of(job))}".encode("utf-8", "replace").decode()
        speak(f"{number}. {job.id} (line {job.line_number}){gpus}: {command}")
    return len(chosen)
