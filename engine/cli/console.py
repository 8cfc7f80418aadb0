"""The console of a command: closed or ASCII-only terminals, Ctrl-C, and keys named in messages as they were typed.

A script calls `begin` before its slow imports and ends with `execute`. In between `print` and `print_rank0` never fail:
characters that cannot be encoded are replaced, output that cannot be written is dropped, with one warning.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import io
import json
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TextIO

from engine.errors import Interrupted, RunFailure, UsageError, disk_fault
from engine.signals import install, on_main_rank, watch_launcher

_signal_code: int | None = None  # the exit code after a signal, once the script has begun
_code: int | None = None  # the exit code of the script, once it has finished


class _Output(io.FileIO):
    """A file descriptor whose first write error is reported, or ends the command if its output is its only purpose."""

    def __init__(self, fd: int, *, ends: bool, warns: bool) -> None:
        super().__init__(fd, "wb", closefd=False)
        self._ends, self._warns, self._failed = ends, warns, False

    def write(self, data: Any) -> int:
        """Raises: SystemExit at the first error, if that ends the command."""
        try:
            # None: another process made the terminal non-blocking, and it is full
            while (written := super().write(data)) is None:
                select.select([], [self], [])
            return written
        except OSError as error:
            if not self._failed:
                self._failed = True
                self._report(error)
        return memoryview(data).nbytes

    def _report(self, error: OSError) -> None:
        if self.fileno() != 1:
            return  # nowhere to report it
        if error.errno == errno.EPIPE and self._ends:
            raise SystemExit(128 + signal.SIGPIPE)  # as a shell reports a program ended by SIGPIPE
        if error.errno == errno.EPIPE and not self._warns:
            return
        kind = "error" if self._ends else "warning"
        _warn(f"{kind}: standard output cannot be written ({error.strerror}){'' if self._ends else '; work continues'}")
        if self._ends:
            raise SystemExit(1)


def open_streams(*, output_is_all: bool = False, run: bool = True) -> None:
    """Make standard output and error safe to write to. Redirected streams (sys.stdout replaced) are left alone.

    `output_is_all`: printing is the command's only purpose, so it ends once nobody reads its output.
    `run`: a training run warns once if nobody reads its output; other commands stay silent.
    """
    for fd in range(3):  # a closed descriptor would be reused by the next file opened
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (for as long as the process lives)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _safe(sys.stdout, 1, ends=output_is_all, warns=run)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _safe(sys.stderr, 2, ends=False, warns=False)


def _safe(stream: TextIO | None, fd: int, *, ends: bool, warns: bool) -> TextIO:
    """A text stream on `fd` to replace `stream`, with its encoding and buffering."""
    if stream is not None and not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding, errors, line_buffering = "utf-8", "strict", fd == 2
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.flush()
        encoding, errors = stream.encoding, stream.errors or "strict"
        line_buffering = stream.line_buffering or stream.write_through
    errors = "replace" if errors in ("strict", "surrogateescape") else errors
    buffer = io.BufferedWriter(_Output(fd, ends=ends, warns=warns))
    return io.TextIOWrapper(buffer, encoding=encoding, errors=errors, line_buffering=line_buffering)


def begin(*, output_is_all: bool = False, run: bool = False) -> None:
    """Call first in a script; the arguments are those of `open_streams`.

    Until all imports are done, a signal ends the script with one line and code 3 (a stopped run) or 130.
    """
    global _signal_code
    code = _signal_code = 3 if run else 130

    def stop(number: int, _: Any) -> None:
        # Not an exception, which an interrupted import may swallow. There is nothing to clean up yet.
        if on_main_rank():
            _warn(f"interrupted: {signal.Signals(number).name} before anything had begun")
        os._exit(code)

    atexit.register(_leave)  # registered first, so it runs last
    install(stop)
    if run:
        watch_launcher()
    open_streams(output_is_all=output_is_all, run=run)
    if problem := _fault_in_ranks(os.environ):
        _warn(f"error: {problem}: unset it, or start the ranks with torchrun")
        sys.exit(UsageError.exit_code)


def _fault_in_ranks(environment: Mapping[str, str]) -> str | None:
    """What is wrong with the rank variables in the environment (a launcher's, or left over), or None."""
    numbers = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    for name in numbers:
        if text := environment.get(name):
            if not text.isdecimal():
                return f"{name}={text} in the environment is not a number"
            numbers[name] = int(text)
    if numbers["RANK"] >= numbers["WORLD_SIZE"]:
        return f"RANK={numbers['RANK']} in the environment is not below WORLD_SIZE={numbers['WORLD_SIZE']}"
    if numbers["WORLD_SIZE"] > 1 and not environment.get("MASTER_ADDR"):
        return f"WORLD_SIZE={numbers['WORLD_SIZE']} in the environment without the MASTER_ADDR of a launcher"
    return None


def print_data(text: str) -> None:
    """Print machine-readable text (JSON, job lines) in UTF-8: replaced characters would be wrong data."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors=sys.stdout.errors)
    sys.stdout.write(text)


def _leave() -> None:
    """Exit at once if the script has finished: tearing down torch takes a second."""
    if _code is not None:
        _flush()
        os._exit(_code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def execute(main: Callable[[], int]) -> NoReturn:
    """Run a script's `main` and exit with its code. A signal raises KeyboardInterrupt in it: code 130 (runs: 3)."""
    if _signal_code is not None:
        install(signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:
        _warn("stopped")
        code = 130 if _signal_code is None else _signal_code
    except OSError as error:  # a report, a log or a lock could not be written: for the user to fix
        failure = disk_fault(error)
        if failure is None:
            raise
        _warn(f"error: {failure}")
        code = failure.exit_code
    finish(code)


def run_command(command: Callable[[], None]) -> int:
    """Run `command`, inside of `execute`; return an exit code. Errors that the user can fix are printed in one line."""
    from engine.distributed import shutdown

    try:
        command()
    except (UsageError, RunFailure, Interrupted, OSError, RuntimeError) as error:
        known = error if isinstance(error, UsageError | RunFailure | Interrupted) else disk_fault(error)
        if known is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.stderr.write(f"error: {known}\n")
        return known.exit_code
    finally:
        shutdown()
    return 0


def finish(code: int) -> NoReturn:
    """Call last in a script: exit with `code`, whatever happens while the interpreter shuts down."""
    global _code
    if _signal_code is not None:
        install(lambda *_: os._exit(code))
    _flush()
    _code = code
    sys.exit(code)


def _warn(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


# --- the user's own spelling of keys ----------------------------------------------------------------------------------

# Code and messages name a key as the config does (`arch.n_layer`, `run_dir`). A user who typed `--n_layer` or
# `--out_dir` should read that spelling: the command line stores it here, and `as_typed` puts it into messages. The
# table is in the environment, so that the jobs of a sweep, started with the config's names, use the command's spelling.
VARIABLE = "LOOPFORGE_SPELLING"


def remember(typed: Mapping[str, str]) -> None:
    """Add key -> its spelling on the command line; both may be `key=value` if a value has another spelling as well."""
    if typed:
        os.environ[VARIABLE] = json.dumps(_table() | dict(typed))


def forget() -> None:
    os.environ.pop(VARIABLE, None)


def as_typed(text: str) -> str:
    """`text` with the keys in the spelling in which they were typed."""
    table = _table()
    return _pattern(tuple(table)).sub(lambda match: table[match["key"]], text) if table else text


def _table() -> dict[str, str]:
    table: dict[str, str] = json.loads(os.environ.get(VARIABLE, "{}"))
    return table


@functools.cache
def _pattern(keys: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the `keys` in a message: as whole words, not in a path or a longer key.

    A key that is a plain word (accumulation) may be prose, so it matches only before `=` or `:`.
    """
    ordered = sorted(keys, key=len, reverse=True)
    names = [re.escape(key) + ("" if re.search(r"[._=]", key) else "(?=[=:])") for key in ordered]
    return re.compile(rf"(?<![\w./-])(?:--)?(?P<key>{'|'.join(names)})(?![\w/-]|\.\w)")
