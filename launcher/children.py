"""Child processes, each in its own session, so that a signal reaches it only once, through us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

SHELLS = ("bash", "sh", "dash", "zsh", "env", "nohup", "time", "timeout")
"""Commands that do not forward signals to their own children."""


class Child:
    """A running command."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: str | Path,
        environment: Mapping[str, str],
        output: IO[bytes] | None = None,
        keep_open: Collection[int] = (),
    ) -> None:
        """Start `command`; python and torchrun are those of this interpreter, whatever is on PATH.

        With `output`, a file for everything it prints, it does not read from the terminal. It inherits the file
        descriptors `keep_open`. Raises: OSError, ValueError for a command that cannot be executed.
        """
        self._signal_group, self._signalled = Path(command[0]).name in SHELLS, False
        self._process = subprocess.Popen(
            with_our_python(command),
            cwd=cwd,
            env=environment,
            stdin=None if output is None else subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, -N if signal N ended it, None while it runs."""
        code = self._process.poll()
        return None if code is not None and self._signalled and self._group_alive() else code

    def wait(self, timeout_s: float) -> int | None:
        """Like `poll`, after at most `timeout_s` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=timeout_s)
        return None

    def send_signal(self, number: int) -> None:
        """Ask it to stop. torchrun forwards only SIGINT and SIGTERM to its ranks, so other signals become SIGTERM."""
        number = number if number in (signal.SIGINT, signal.SIGTERM) else signal.SIGTERM
        if not self._signal_group:
            self._process.send_signal(number)
        elif self._process.poll() is None:
            os.killpg(self.pid, number)
            self._signalled = True

    def _group_alive(self) -> bool:
        """Whether the process group still runs: a shell dies at once from a signal, its child first saves."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True


def with_our_python(words: Sequence[str]) -> list[str]:
    """`words` with python and torchrun replaced by those of this interpreter."""
    first, *rest = words
    if first in ("python", "python3"):
        return [sys.executable, *rest]
    if first == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", *rest]
    return [first, *rest]


def signal_name(number: int) -> str:
    """`SIGTERM` for 15."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- processes started by others --------------------------------------------------------------------------------------


def start_time(pid: int) -> str | None:
    """When the process started, in the kernel's clock ticks; None if it does not run (or there is no /proc)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def process_alive(pid: int, started: str | None = None) -> bool:
    """Whether `pid` runs and, if `started` is known, is still the same process and not a later one."""
    if Path("/proc/self/stat").exists():
        return start_time(pid) is not None and started in (None, start_time(pid))
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
