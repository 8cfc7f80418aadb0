"""How a job ended. torchrun exits 1 whatever the run says, so the run's own status.json is believed first."""

from __future__ import annotations

import datetime
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.run.files import read_json
from launcher.jobs import Job

HEAD, TAIL = 1 << 20, 1 << 16  # bytes of a log that are searched from its start and from its end
# what engine.run.rundir says first and engine.run.launch last; --tee of torchrun puts [default0]: before each
_OPENED = re.compile(
    r"^(?:\[\w+\]:\s?)?(?:.* is now \S+; )?(?P<path>\S.*?): (?:new run|going on from|no checkpoint yet)"
)
_DONE = re.compile(r"^(?:\[\w+\]:\s?)?done: (?P<path>.+) \(step \d+")
_ERROR = re.compile(r"^(?:\[\w+\]:\s?)?((?:error|\w*(?:Error|Exception|Failure)): .+)")


@dataclass(frozen=True)
class Outcome:
    """What to write and what to do about it."""

    state: str
    """todo (goes on later), done or failed"""
    retry: bool
    """whether trying once more may help"""
    message: str
    exit_code: int | None
    run_dir: str | None = None
    step: int | None = None


def judge(
    job: Job, code: int | None, *, cwd: Path, log: Path, offset: int, started: float, stopping: bool = False
) -> Outcome:
    """How the attempt of `job` ended that began at `started` (seconds) and wrote `log` from `offset` on.

    `code` is the exit code, negative for a signal, None when another runner's job ended unseen.
    `stopping`: we asked it to.
    """
    run_dir = find_run(job, cwd, log, offset)
    status = fresh_status(cwd / run_dir, started) if run_dir else {}
    said, step = status.get("state"), status.get("step")
    message = status.get("message") or ""

    def outcome(state: str, retry: bool, text: str) -> Outcome:
        return Outcome(state, retry, text, code, run_dir, step if isinstance(step, int) else None)

    if code == 0 or said == "done":
        return outcome("done", False, "" if code in (0, None) else f"status.json says done; exit code {code}")
    if code == 3 or said == "interrupted":
        return outcome("todo", True, message or "stopped by a signal, goes on from its checkpoint")
    if said == "refused" or code == 2:
        return outcome("failed", False, message or last_error(log, offset) or "refused")
    if said == "failed":
        return outcome("failed", True, message or last_error(log, offset))
    if code is None:
        return outcome("todo", True, "its runner is gone and so is the job")
    if stopping:  # before it could save: it goes on from an earlier checkpoint, or starts again
        return outcome("todo", True, "stopped")
    if code < 0:
        return outcome("failed", True, f"killed by {_signal_name(-code)}")
    return outcome("failed", True, last_error(log, offset) or f"exit code {code}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def find_run(job: Job, cwd: Path, log: Path, offset: int) -> str | None:
    """The run directory that the log names; else the newest `checkpoints/*/<run_name>`."""
    for line in _lines(log, offset):
        if match := _OPENED.match(line) or _DONE.match(line):
            found = match["path"].rpartition("; ")[2]
            if (cwd / found).is_dir():
                return found
    if not job.run_name or "/" in job.run_name:
        return None
    project = job.value("project_name")
    places = [
        path for path in cwd.glob("checkpoints/*/*/status.json")
        if path.parent.name == job.run_name and project in (None, path.parent.parent.name)
    ]  # fmt: skip
    newest = max(places, key=lambda path: path.stat().st_mtime, default=None)
    return os.fspath(newest.parent.relative_to(cwd)) if newest else None


def fresh_status(run_dir: Path, started: float) -> dict[str, Any]:
    """status.json of `run_dir`, empty unless it was written since `started`: an older one is of another attempt."""
    status = read_json(run_dir / "status.json")
    try:
        written = datetime.datetime.fromisoformat(str(status.get("time"))).timestamp()
    except ValueError:
        return {}
    return status if written >= started else {}


def last_error(log: Path, offset: int) -> str:
    """The last line of the attempt that looks like an error's."""
    found = ""
    for line in _lines(log, offset):
        if match := _ERROR.match(line):
            found = match[1]
    return found[:200]


def _lines(log: Path, offset: int) -> Iterator[str]:
    """Lines of the log from `offset`: the first MiB and the last 64 KiB."""
    try:
        with open(log, "rb") as stream:
            stream.seek(offset)
            head = stream.read(HEAD)
            rest = stream.seek(0, os.SEEK_END) - offset - len(head)
            stream.seek(-min(rest, TAIL), os.SEEK_END)
            tail = stream.read() if rest > 0 else b""
    except OSError:
        return
    for part in (head, tail):
        yield from part.decode("utf-8", "replace").splitlines()
