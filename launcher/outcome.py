"""Decides how a child ended. torchrun exits with 1 however the run ended, so the run's status.json comes first."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.run.files import read_json
from launcher.children import signal_name

CODES = {"done": 0, "failed": 1, "refused": 2, "interrupted": 3}
"""State of a run -> exit code of its process."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""torchrun's environment variable: the file for the error that ends a process."""
TAIL = 1 << 20  # bytes at the end of a log that are searched
# torchrun's --tee prefixes each line with [default0]:
_ERROR = re.compile(r"^(?:\[\w+\]:\s?)?((?:error|\w*(?:Error|Exception|Failure)): .+|\S+: can't open file .+)")


@dataclass(frozen=True)
class Outcome:
    """How one child ended."""

    state: str
    """one of CODES; an interrupted run resumes when it is started again"""
    message: str = ""
    returned: int | None = None
    """exit code of the process: -N if signal N ended it, None if unknown"""
    run_dir: Path | None = None
    step: int | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    """summary.json of a completed run: name, value and direction of its metric, step, seconds"""

    @property
    def exit_code(self) -> int:
        """The exit code of the run itself."""
        return max(1, self.returned or 1) if self.state == "failed" else CODES[self.state]


def judge(
    returned: int | None, run_dir: Path | None, *, started: float, stopping: bool = False, log_error: str = ""
) -> Outcome:
    """The outcome of the child that was started at `started` (seconds since the epoch) and used `run_dir`.

    `returned`: its exit code, -N for signal N, None if unknown. `stopping`: we asked it to stop. `log_error`: the last
    error in its log or its error file, for a run without a message.
    """
    stored = read_json(run_dir / "status.json") if run_dir is not None else {}
    status = stored if _written_since(stored, started) else {}
    claimed, message = status.get("state"), str(status.get("message") or "")
    if returned == 0 or claimed == "done":
        state, message = "done", f"status.json says done; exit code {returned}" if returned else ""
    elif returned == CODES["interrupted"] or claimed == "interrupted":
        state, message = "interrupted", message or "stopped by a signal, resumes from its checkpoint"
    elif returned == CODES["refused"] or claimed == "refused":
        state, message = "refused", message or log_error
    elif claimed == "failed":
        state, message = "failed", message or log_error
    elif returned is None:
        state, message = "interrupted", "its runner is gone and so is the job"
    elif stopping:  # it ended before it could save: it resumes from an earlier checkpoint, or starts again
        state, message = "interrupted", "stopped"
    elif returned < 0:
        state, message = "failed", f"killed by {signal_name(-returned)}"
    else:
        state, message = "failed", log_error
    done = state == "done" and stored.get("state") == "done" and run_dir is not None
    summary = read_json(run_dir / "summary.json") if done and run_dir is not None else {}
    step = summary.get("step", stored.get("step") if done else status.get("step"))
    return Outcome(state, message, returned, run_dir, step if isinstance(step, int) else None, summary)


def _written_since(status: Mapping[str, Any], started: float) -> bool:
    """Whether a status.json was written by this attempt, not an earlier one."""
    try:
        return datetime.datetime.fromisoformat(str(status.get("time"))).timestamp() >= started
    except ValueError:
        return False


def reported_run_dir(report: Path) -> Path | None:
    """The run directory that a child wrote to the file `report` (`engine.run.environment.report_run_dir`)."""
    try:
        return Path(os.fsdecode(report.read_bytes()))
    except OSError:
        return None


def reported_error(file: Path) -> str:
    """The last line of the error that a child wrote to ERROR_FILE (`engine.distributed.report_to_launcher`)."""
    try:
        lines = str(read_json(file)["message"]["extraInfo"]["py_callstack"]).splitlines()
    except (KeyError, TypeError):
        return ""
    return lines[-1].removeprefix("error: ") if lines else ""


def last_error(log: Path, offset: int) -> str:
    """The last line of `log`, from byte `offset` on, that looks like an error; at most 200 characters."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(offset, stream.seek(0, os.SEEK_END) - TAIL))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    matches = [match[1] for line in lines if (match := _ERROR.match(line))]
    return matches[-1][:200] if matches else ""
