"""The loop of run_jobs.py: claim a job, start it, watch it, record its outcome. One thread, a child process per job."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import available_cores, print_rank0
from engine.run.environment import REPORT
from engine.signals import install, restore
from launcher.children import Child, process_alive
from launcher.ledger import HOST, Claim, Ledger, Record
from launcher.outcome import Outcome, judge, last_error, reported_run_dir
from launcher.queue import Options, nothing_to_do, unknown_owners
from launcher.ranks import ranks_of
from launcher.table import short_path

POLL_S = 0.1
NOT_STARTED = 127  # a shell's code for a command that is not found
JOB_STATES = {"done": "done", "failed": "failed", "refused": "failed", "interrupted": "todo"}
"""State of the run -> state of its line."""
MESSAGES = {"todo": "interrupted, back to [ ]", "done": "done", "failed": "FAILED"}


class Runner:
    """Runs the jobs of one file until none is left, or a signal stops it."""

    def __init__(self, ledger: Ledger, options: Options) -> None:
        self.ledger, self.options = ledger, options
        self.running: list[Claim] = []
        self.ended: Counter[str] = Counter()
        """how many jobs ended as done, failed, todo"""
        self.started = 0
        self.stop: str | None = None
        """the signal that asked us to stop"""
        self._skipped: set[str] = set()
        self._last_step: dict[str, int] = {}

    def run(self) -> int:
        """The exit code: 0 all done, 1 a job failed, 3 stopped by a signal. Raises: UsageError."""
        self._require_logs()
        previous = install(self._note_signal)
        try:
            while True:
                self._start_more() if self.stop is None else self._pass_signal_on()
                if not self.running:
                    break
                time.sleep(POLL_S)
                for claim in list(self.running):
                    self._check(claim)
        finally:
            restore(previous)
        interrupted = self.options.once and self.ended["todo"]  # the only job was interrupted, but not by us
        return 3 if self.stop is not None or interrupted else 1 if self.ended["failed"] else 0

    def _require_logs(self) -> None:
        """Check, before any line is marked, that logs can be written. Raises: UsageError."""
        folder = self.options.logs
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(None, "no permission")
        except OSError as error:
            raise _no_log(folder, error) from None

    # --- starting

    def _start_more(self) -> None:
        options = self.options
        while self.stop is None and len(self.running) < options.jobs and not (options.once and self.started):
            try:
                claim = self.ledger.claim(
                    lambda job: options.selects(job) and job.key not in self._skipped,
                    fits=lambda job: options.gpus_for(job) <= len(self._free_gpus()),
                    marks=options.marks,
                    hosts=options.take_over,
                )
            except UsageError:
                if not self.running:
                    raise
                return  # the file cannot be read: first wait for the running jobs
            if claim is None:
                return
            self.started += 1
            if claim.orphan:
                which = f"process {claim.record.child}"
                print_rank0(f"{claim.job.id}: still running ({which}) though its runner is gone: watching it")
                claim.record.started = claim.record.started or time.time()
                self.running.append(claim)
            elif not self._already_ended(claim):
                self._start(claim)

    def _free_gpus(self) -> list[str]:
        used = {gpu for claim in self.running for gpu in claim.record.gpus}
        return [gpu for gpu in self.options.gpus or () if gpu not in used]

    def _already_ended(self, claim: Claim) -> bool:
        """Whether a job whose runner was killed has completed since; then it is finished here."""
        if not claim.taken_over or claim.record.started is None:
            return False
        outcome = self._judge(claim, None)
        if outcome.state == "interrupted":
            print_rank0(f"{claim.job.id}: taken over from a runner that is gone")
            return False
        self._finish(claim, outcome)
        return True

    def _start(self, claim: Claim) -> None:
        """Start the job (again); one that cannot be started counts as failed."""
        job, record, options = claim.job, claim.record, self.options
        report, log = self.ledger.report_file(job), options.logs / f"{job.key}.log"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", REPORT: str(report), **job.env}
        if options.jobs > 1 and ranks_of(job.argv) == "1":  # several ranks: torchrun limits their threads
            environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // options.jobs)))
        gpus = self._free_gpus()[: options.gpus_for(job)]
        if options.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        claim.attempt += 1
        kept = {name: getattr(record, name) for name in ("id", "command", "runner", "host", "runner_started")}
        claim.record = record = Record(
            **kept, state="running", started=time.time(), attempts=record.attempts + 1, log=str(log), gpus=gpus
        )
        try:
            report.unlink(missing_ok=True)
            log.parent.mkdir(parents=True, exist_ok=True)
            stream = log.open("ab")
        except OSError as error:  # the folder was removed or became unwritable; other jobs may be running
            self._finish(claim, Outcome("refused", str(_no_log(log, error)), UsageError.exit_code))
            return
        with stream:
            when, on = time.strftime("%Y-%m-%d %H:%M:%S"), ",".join(gpus) or "-"
            head = f"=== attempt {record.attempts}, {when}, {HOST}, gpus {on}: "
            stream.write(head.encode() + job.command.encode("utf-8", "surrogateescape") + b"\n")
            stream.flush()
            record.log_offset = stream.tell()
            try:
                words, handles = options.words_of(job), [claim.handle]
                claim.child = Child(words, cwd=options.cwd, environment=environment, output=stream, keep_open=handles)
            except (OSError, ValueError) as error:
                message = f"{job.argv[0]}: {getattr(error, 'strerror', None) or error}"
                stream.write(f"error: {message}\n".encode(errors="replace"))
                self._finish(claim, Outcome("failed", message, NOT_STARTED))
                return
        record.child = claim.child.pid
        self.running.append(claim)
        self.ledger.write_record(job, record)
        with_gpus = f", gpus {','.join(gpus)}" if gpus else ""
        print_rank0(f"{job.id}: started (process {record.child}{with_gpus}), log {short_path(log, options.cwd)}")

    # --- watching and ending

    def _check(self, claim: Claim) -> None:
        """Finish or retry one job if it has ended."""
        returned = claim.child.poll() if claim.child is not None else None
        if returned is None and (claim.child is not None or not self.ledger.adopt(claim)):
            return
        self.running.remove(claim)
        outcome, retries = self._judge(claim, returned), self.options.retries
        if outcome.state == "failed" and 0 < claim.attempt <= retries and self.stop is None:
            print_rank0(f"{claim.job.id}: failed ({outcome.message}); trying again, {claim.attempt} of {retries}")
            self._start(claim)
        else:
            self._finish(claim, outcome)

    def _judge(self, claim: Claim, returned: int | None) -> Outcome:
        record = claim.record
        error = last_error(Path(record.log), record.log_offset) or (f"exit code {returned}" if returned else "")
        run_dir = reported_run_dir(self.ledger.report_file(claim.job))
        return judge(returned, run_dir, started=record.started or 0.0, stopping=claim.stop_sent, log_error=error)

    def _finish(self, claim: Claim, outcome: Outcome) -> None:
        job, state, cwd = claim.job, JOB_STATES[outcome.state], self.options.cwd
        run_dir, now = short_path(outcome.run_dir, cwd), time.time()
        claim.record = record = replace(
            claim.record,
            state=state,
            ended=now,
            exit_code=outcome.returned,
            run_dir=run_dir or None,
            step=outcome.step,
            message=outcome.message,
        )
        self.ledger.write_record(job, record)
        marked = self.ledger.release(claim, state)
        self.ended[state] += 1
        note = f" ({outcome.message})" if outcome.message else ""
        seconds = now - (record.started or now)
        print_rank0(
            f"{job.id}: {MESSAGES[state]}{note} after {seconds:.0f} s: {run_dir or short_path(record.log, cwd)}"
        )
        if not marked:
            print_rank0(f"{job.id}: its line is no longer in {self.ledger.path.name}, nothing was marked")
        if state == "failed":  # --failed retries it once, not for ever
            self._skipped.add(job.key)
        elif state == "todo" and self.stop is None:  # interrupted: restarted only as long as it makes progress
            step = outcome.step or 0
            if step <= self._last_step.get(job.key, -1):
                self._skipped.add(job.key)
                print_rank0(f"{job.id}: interrupted twice at step {step}: left for another runner")
            self._last_step[job.key] = step

    # --- signals

    def _note_signal(self, number: int, _: Any) -> None:
        self.stop = self.stop or signal.Signals(number).name

    def _pass_signal_on(self) -> None:
        """Ask each job to stop, once; torchrun forwards the signal to its ranks, which write a checkpoint."""
        for claim in self.running:
            if claim.stop_sent:
                continue
            claim.stop_sent = True
            print_rank0(f"{claim.job.id}: {self.stop}: asked to stop, waiting for its checkpoint")
            if claim.child is not None:
                claim.child.send_signal(signal.SIGTERM)
            elif claim.record.child is not None and process_alive(claim.record.child):
                os.kill(claim.record.child, signal.SIGTERM)


def run_jobs(ledger: Ledger, options: Options) -> int:
    """Run the jobs of a file and print their outcomes; return the exit code. Raises: UsageError."""
    runner = Runner(ledger, options)
    code, ended = runner.run(), runner.ended
    counts = f"{ended['done']} done, {ended['failed']} failed, {ended['todo']} interrupted"
    print_rank0(counts if runner.started else nothing_to_do(ledger, options))
    for line in unknown_owners(ledger):
        print_rank0(line)
    return code


def _no_log(place: Path, error: OSError) -> UsageError:
    return UsageError(f"the log {place} cannot be written ({error.strerror}): name another folder with --logs")
