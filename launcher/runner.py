"""The loop of run_jobs.py: claim, start, watch, judge, write down. One thread; a job is a child process."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from engine.errors import UsageError
from engine.io import print_rank0
from engine.run.parent import REPORT
from engine.signals import install, restore
from launcher.children import Child, process_alive, with_our_python
from launcher.jobs import Job
from launcher.ledger import HOST, Claim, Ledger, Record
from launcher.outcome import Outcome, judge, last_error, reported_run_dir
from launcher.queue import Options
from launcher.table import short_path

POLL_S = 0.1
NOT_STARTED = 127  # a shell's code for a command that is not there
JOB_STATES = {"done": "done", "failed": "failed", "refused": "failed", "interrupted": "todo"}
"""State of the run -> state of its line."""
MESSAGES = {"todo": "interrupted, back to [ ]", "done": "done", "failed": "FAILED"}


@dataclass
class _Running:
    """A job that runs, started by us or (an orphan) by a runner that is gone."""

    claim: Claim
    child: Child | None = None
    """None: an orphan, watched by its lock"""
    attempt: int = 1
    asked_to_stop: bool = False

    @property
    def job(self) -> Job:
        return self.claim.job

    @property
    def record(self) -> Record:
        return self.claim.record


class Runner:
    """Runs the jobs of one file until none is left for it, or a signal comes."""

    def __init__(self, ledger: Ledger, options: Options) -> None:
        self.ledger, self.options = ledger, options
        self.running: list[_Running] = []
        self.ended: Counter[str] = Counter()
        """how many jobs ended as done, failed, todo"""
        self.started = 0
        self.stop: str | None = None
        """the signal that asked us to stop"""
        self._skipped: set[str] = set()
        self._last_step: dict[str, int] = {}

    def run(self) -> int:
        """The exit code: 0 all done, 1 a job failed, 3 stopped by a signal."""
        self._require_logs()
        with self._noting_signals():
            while True:
                if self.stop is None:
                    self._start_more()
                else:
                    self._pass_signal_on()
                if not self.running:
                    break
                time.sleep(POLL_S)
                for item in list(self.running):
                    self._check(item)
        if self.stop is not None:
            return 3
        return 1 if self.ended["failed"] else 0

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
                    lambda job: options.selects(job) and job.key not in self._skipped,
                    fits=lambda job: options.gpus_for(job) <= len(self._free_gpus()),
                    marks=options.marks,
                    hosts=options.hosts,
                )
            except UsageError:
                if not self.running:
                    raise
                return  # the file cannot be read: first wait for the running jobs
            if claim is None:
                return
            self.started += 1
            if claim.orphan:
                child = claim.record.child
                line = f"still running (process {child}) though its runner is gone: watching it"
                print_rank0(f"{claim.job.id}: {line}")
                claim.record.started = claim.record.started or time.time()
                self.running.append(_Running(claim))
            elif not (claim.taken_over and self._ended_unseen(claim)):
                self._start(claim, attempt=1)

    def _free_gpus(self) -> list[str]:
        taken = {gpu for item in self.running for gpu in item.record.gpus}
        return [gpu for gpu in self.options.gpus or () if gpu not in taken]

    def _ended_unseen(self, claim: Claim) -> bool:
        """Whether a job whose runner was killed had come to its end all the same."""
        if claim.record.started is None:
            return False
        item = _Running(claim)
        outcome = self._judge(item, None)
        if JOB_STATES[outcome.state] == "todo":
            print_rank0(f"{claim.job.id}: taken over from a runner that is gone")
            return False
        self._finish(item, outcome)
        return True

    def _start(self, claim: Claim, attempt: int) -> None:
        """Start the job; one that cannot be started has failed."""
        job, record, options = claim.job, claim.record, self.options
        report = self.ledger.report_file(job)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", REPORT: str(report), **job.env}
        gpus = self._free_gpus()[: options.gpus_for(job)]
        if options.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        log, item = options.logs / f"{job.key}.log", _Running(claim, attempt=attempt)
        record.state, record.started, record.ended, record.log = "running", time.time(), None, str(log)
        record.attempts, record.gpus, record.child, record.log_offset = record.attempts + 1, gpus, None, 0
        record.exit_code, record.run_dir, record.step, record.message = None, None, None, ""
        try:
            report.unlink(missing_ok=True)
            log.parent.mkdir(parents=True, exist_ok=True)
            stream = log.open("ab")
        except OSError as error:  # removed or forbidden meanwhile; other jobs may be running
            self._finish(item, Outcome("refused", str(_no_log(log, error)), UsageError.exit_code))
            return
        with stream:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            head = f"=== attempt {record.attempts}, {when}, {HOST}, gpus {','.join(gpus) or '-'}: "
            stream.write(head.encode() + job.command.encode("utf-8", "surrogateescape") + b"\n")
            stream.flush()
            record.log_offset = stream.tell()
            try:
                item.child = Child(
                    with_our_python(job.argv),
                    cwd=options.cwd,
                    environment=environment,
                    output=stream,
                    keep_open=[claim.handle],
                )
            except (OSError, ValueError) as error:
                message = f"{job.argv[0]}: {getattr(error, 'strerror', None) or error}"
                stream.write(f"error: {message}\n".encode(errors="replace"))
                self._finish(item, Outcome("failed", message, NOT_STARTED))
                return
        record.child = item.child.pid
        self.running.append(item)
        self.ledger.write_record(job, record)
        with_gpus = f", gpus {','.join(gpus)}" if gpus else ""
        print_rank0(f"{job.id}: started (process {record.child}{with_gpus}), log {short_path(log, options.cwd)}")

    # --- watching and ending

    def _check(self, item: _Running) -> None:
        """Deal with one job if it has ended."""
        returned = None
        if item.child is not None:
            if (returned := item.child.poll()) is None:
                return
        elif not self.ledger.adopt(item.claim):
            return
        self.running.remove(item)
        outcome = self._judge(item, returned)
        retry = outcome.state == "failed" and item.child is not None and item.attempt <= self.options.retries
        if retry and self.stop is None:
            tries = f"{item.attempt} of {self.options.retries}"
            print_rank0(f"{item.job.id}: failed ({outcome.message}); trying again, {tries}")
            self._start(item.claim, item.attempt + 1)
            return
        self._finish(item, outcome)

    def _judge(self, item: _Running, returned: int | None) -> Outcome:
        record = item.record
        error = last_error(Path(record.log), record.log_offset)
        if not error and returned is not None and returned > 0:
            error = f"exit code {returned}"
        return judge(
            returned,
            find_run_dir(self.ledger, item.job, self.options.cwd),
            started=record.started or 0.0,
            stopping=item.asked_to_stop,
            log_error=error,
        )

    def _finish(self, item: _Running, outcome: Outcome) -> None:
        job, record, cwd = item.job, item.record, self.options.cwd
        state, run_dir = JOB_STATES[outcome.state], short_path(outcome.run_dir, cwd)
        record.state, record.ended, record.exit_code = state, time.time(), outcome.returned
        record.run_dir, record.step, record.message = run_dir or None, outcome.step, outcome.message
        self.ledger.write_record(job, record)
        marked = self.ledger.release(item.claim, state)
        if state == "todo" and self.stop is None:
            self._skip_without_progress(job, outcome)
        if state == "failed":  # --failed takes it once, not for ever
            self._skipped.add(job.key)
        self.ended[state] += 1
        note = f" ({outcome.message})" if outcome.message else ""
        seconds = record.ended - (record.started or record.ended)
        where = run_dir or short_path(record.log, cwd)
        print_rank0(f"{job.id}: {MESSAGES[state]}{note} after {seconds:.0f} s: {where}")
        if not marked:
            print_rank0(f"{job.id}: its line is no longer in {self.ledger.path.name}, nothing was marked")

    def _skip_without_progress(self, job: Job, outcome: Outcome) -> None:
        """A job that is interrupted again and again is started again only as long as it gets further."""
        step = outcome.step or 0
        if job.key in self._last_step and step <= self._last_step[job.key]:
            self._skipped.add(job.key)
            print_rank0(f"{job.id}: interrupted twice at step {step}: left for another runner")
        self._last_step[job.key] = step

    # --- signals

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self.stop = self.stop or signal.Signals(number).name

        previous = install(note)
        try:
            yield
        finally:
            restore(previous)

    def _pass_signal_on(self) -> None:
        """Ask each job to stop, once; torchrun passes it on to its ranks, which write a checkpoint."""
        for item in self.running:
            if item.asked_to_stop:
                continue
            item.asked_to_stop = True
            print_rank0(f"{item.job.id}: {self.stop}: asked to stop, waiting for its checkpoint")
            if item.child is not None:
                item.child.send_signal(signal.SIGTERM)
            elif item.record.child is not None and process_alive(item.record.child):
                os.kill(item.record.child, signal.SIGTERM)


def find_run_dir(ledger: Ledger, job: Job, cwd: Path) -> Path | None:
    """The run directory of the job's last attempt: the one that the run reported, else the newest of its run_name."""
    if (reported := reported_run_dir(ledger.report_file(job))) is not None:
        return reported
    if not job.run_name or "/" in job.run_name:
        return None
    project = job.value("project_name")
    places = [
        path.parent
        for path in cwd.glob("checkpoints/*/*/status.json")
        if path.parent.name == job.run_name and project in (None, path.parent.parent.name)
    ]
    return max(places, key=lambda place: (place / "status.json").stat().st_mtime, default=None)


def _no_log(place: Path, error: OSError) -> UsageError:
    return UsageError(f"the log {place} cannot be written ({error.strerror}): name another folder with --logs")
