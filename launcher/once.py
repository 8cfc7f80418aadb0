"""Runs one command to its end and returns the run's exit code, not torchrun's."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.errors import UsageError
from engine.run.environment import REPORT
from engine.signals import install, restore
from launcher.children import Child
from launcher.outcome import Outcome, judge, reported_run_dir
from launcher.runner import POLL_S


def run_once(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Outcome:
    """Run `argv` with the variables `env` added, and forward the first signal that asks it to stop.

    Only the first: after a second one torchrun no longer waits for its ranks' checkpoint. Slurm signals every process
    of a step, and submitit sends another. Raises: UsageError for a command that cannot be started.
    """
    received: list[int] = []
    with tempfile.TemporaryDirectory(prefix="loopforge-launch-") as folder:
        report, started = Path(folder) / "run", time.time()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", REPORT: str(report), **env}
        before = install(lambda number, _: received.append(number))
        try:
            child, stop_sent = Child(argv, cwd=cwd, environment=environment), False
            while (returned := child.poll()) is None:
                if received and not stop_sent:
                    child.send_signal(received[0])
                    stop_sent = True
                time.sleep(POLL_S)
        except (OSError, ValueError) as error:
            raise UsageError(f"{argv[0]}: {getattr(error, 'strerror', None) or error}") from None
        finally:
            restore(before)
        return judge(returned, reported_run_dir(report), started=started, stopping=bool(received))
