"""Console of a command: a terminal that is closed or shows only ASCII, Ctrl-C, and keys named as they were typed.

A script calls `begin` before its slow imports and ends with `execute`. In between `print` and `print_rank0` never fail:
what cannot be shown is replaced, what cannot be written is dropped, with one warning.
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

_stopped: int | None = None  # the exit code of a signal, once the script has begun
_code: int | None = None  # the exit code of the script, once it has come to its end


class _Output(io.FileIO):
    """A file descriptor whose first failure is reported, or ends the command where its output is all it is for."""

    def __init__(self, fd: int, *, ends: bool, warns: bool) -> None:
        super().__init__(fd, "wb", closefd=False)
        self._ends, self._warns, self._failed = ends, warns, False

    def write(self, data: Any) -> int:
        """Raises: SystemExit at the first failure, where the command is to end with it."""
        try:
            while (written := super().write(data)) is None:  # someone made the terminal non-blocking, and it is full
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
            raise SystemExit(128 + signal.SIGPIPE)  # what a shell reports for a program that it has ended
        if error.errno == errno.EPIPE and not self._warns:
            return
        kind = "error" if self._ends else "warning"
        _warn(f"{kind}: standard output cannot be written ({error.strerror}){'' if self._ends else '; work continues'}")
        if self._ends:
            raise SystemExit(1)


def open_streams(*, output_is_all: bool = False, run: bool = True) -> None:
    """Make standard output and error safe to write to. Only streams that are the process's own are touched.

    `output_is_all`: the command leaves nothing but what it prints, so it ends when nobody can read that any more.
    `run`: it takes long, so it warns once when nobody reads its output; another command is quiet about that.
    """
    for fd in range(3):  # a closed one would be the next file that is opened
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
    """A text stream on `fd` in place of `stream`, with its encoding and buffering."""
    if stream is not None and not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding, errors, at_once = "utf-8", "strict", fd == 2
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.flush()
        encoding, errors = stream.encoding, stream.errors or "strict"
        at_once = stream.line_buffering or stream.write_through
    errors = "replace" if errors in ("strict", "surrogateescape") else errors
    buffer = io.BufferedWriter(_Output(fd, ends=ends, warns=warns))
    return io.TextIOWrapper(buffer, encoding=encoding, errors=errors, line_buffering=at_once)


def begin(*, output_is_all: bool = False, run: bool = False) -> None:
    """The first act of a script; the arguments are those of `open_streams`.

    Until it has imported everything a signal ends it in one line with 3, that of a run that was stopped, else 130.
    """
    global _stopped
    code = _stopped = 3 if run else 130

    def stop(number: int, _: Any) -> None:
        # Not an exception: an import that is interrupted may swallow it. Nothing has begun that needs an end.
        if on_main_rank():
            _warn(f"interrupted: {signal.Signals(number).name} before anything had begun")
        os._exit(code)

    atexit.register(_leave)  # the first to be registered is the last to run
    install(stop)
    if run:
        watch_launcher()
    open_streams(output_is_all=output_is_all, run=run)
    if problem := _fault_in_ranks(os.environ):
        _warn(f"error: {problem}: unset it, or start the ranks with torchrun")
        sys.exit(UsageError.exit_code)


def _fault_in_ranks(environment: Mapping[str, str]) -> str | None:
    """What is wrong with the ranks that a launcher or an earlier command has left in the environment, or None."""
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
    """Print what a program reads (JSON, job lines): in UTF-8, since a character replaced would be a wrong one."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors=sys.stdout.errors)
    sys.stdout.write(text)


def _leave() -> None:
    """End here and now, if the script has come to its end: taking all of torch apart costs a second of waiting."""
    if _code is not None:
        _flush()
        os._exit(_code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def execute(main: Callable[[], int]) -> NoReturn:
    """Run a script's `main` and exit with its code. A signal raises KeyboardInterrupt in it, and exits 130 (3)."""
    if _stopped is not None:
        install(signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:
        _warn("stopped")
        code = 130 if _stopped is None else _stopped
    except OSError as error:  # a report, a log, a lock: what the disk refuses is for the user to fix
        failure = disk_fault(error)
        if failure is None:
            raise
        _warn(f"error: {failure}")
        code = failure.exit_code
    finish(code)


def run_command(command: Callable[[], None]) -> int:
    """Run `command` and turn the ways it may end into exit codes; one line for what the user can fix."""
    from engine.distributed import shutdown

    try:
        command()
    except (UsageError, RunFailure, Interrupted, OSError, RuntimeError) as error:
        known = error if isinstance(error, UsageError | RunFailure | Interrupted) else disk_fault(error)
        if known is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.stderr.write(f"error: {known}\n")
        return known.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    finally:
        shutdown()
    return 0


def finish(code: int) -> NoReturn:
    """The last act of a script: exit with `code`, whatever comes while the interpreter ends."""
    global _code
    if _stopped is not None:
        install(lambda *_: os._exit(code))
    _flush()
    _code = code
    sys.exit(code)


def _warn(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


# --- the user's own spelling of keys ----------------------------------------------------------------------------------

# Code and messages name a key as the config does (`arch.n_layer`, `run_dir`). Whoever typed `--n_layer` or `--out_dir`
# reads that word: the command line remembers it here, and what prints asks here. The table lies in the environment, so
# that the jobs of a sweep, which are started with the config's names, use the words of the command that began them.
VARIABLE = "LOOPFORGE_SPELLING"


def remember(typed: Mapping[str, str]) -> None:
    """Add key -> the word typed for it; both may be `key=value`, where a value has another spelling as well."""
    if typed:
        os.environ[VARIABLE] = json.dumps(_table() | dict(typed))


def forget() -> None:
    os.environ.pop(VARIABLE, None)


def as_typed(text: str) -> str:
    """`text` with each key that was typed in another spelling in that spelling."""
    table = _table()
    return _pattern(tuple(table)).sub(lambda match: table[match["key"]], text) if table else text


def _table() -> dict[str, str]:
    table: dict[str, str] = json.loads(os.environ.get(VARIABLE, "{}"))
    return table


@functools.cache
def _pattern(keys: tuple[str, ...]) -> re.Pattern[str]:
    """Where one of `keys` is meant: a word of its own, no part of a path or of a longer key.

    A key that is a plain word (accumulation) may be prose: it counts as a key only before `=` or `:`.
    """
    ordered = sorted(keys, key=len, reverse=True)
    names = [re.escape(key) + ("" if re.search(r"[._=]", key) else "(?=[=:])") for key in ordered]
    return re.compile(rf"(?<![\w./-])(?:--)?(?P<key>{'|'.join(names)})(?![\w/-]|\.\w)")
