"""Runs commands in forked children of a process that has torch loaded: they start in tenths of a second."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import runpy
import selectors
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from engine.registry import ROOT

PATIENCE_S = 10.0
"""How long a command may take to end after SIGTERM."""
MEMORY = 3 << 30
"""Bytes that a child may allocate beyond what it starts with."""
Call = Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `code` is -N if signal N ended it."""

    code: int
    output: str
    seconds: float

    @property
    def last(self) -> str:
        """The last line that it printed."""
        return (self.output.strip().splitlines() or [""])[-1]


def import_all(names: Iterable[str]) -> None:
    """Import once what the children will need. Names that cannot be imported are skipped."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


@dataclass(frozen=True)
class Child:
    """A running command; `wait` for it once."""

    pid: int
    started: float
    pipe: int
    """Its output: a pipe, since a limit on file sizes would apply to a file."""


def wait(children: Sequence[Child]) -> list[Outcome]:
    """Wait until all commands have ended; return their outcomes."""
    chunks: dict[int, list[bytes]] = {child.pipe: [] for child in children}
    with selectors.DefaultSelector() as open_pipes:
        for pipe in chunks:
            open_pipes.register(pipe, selectors.EVENT_READ)
        while open_pipes.get_map():
            for key, _ in open_pipes.select():
                chunks[key.fd].append(os.read(key.fd, 1 << 16))
                if not chunks[key.fd][-1]:
                    open_pipes.unregister(key.fd)
                    os.close(key.fd)
    outcomes = []
    for child in children:
        _, status = os.waitpid(child.pid, 0)
        output = b"".join(chunks[child.pipe]).decode("utf-8", "replace")
        outcomes.append(Outcome(os.waitstatus_to_exitcode(status), output, time.monotonic() - child.started))
    return outcomes


def end(children: Sequence[Child]) -> None:
    """End those that still run: SIGTERM, which a runner forwards to its jobs, then SIGKILL."""
    try:
        for child in _running(children):
            os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while _running(children) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        for child in _running(children):
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)


def _running(children: Sequence[Child]) -> list[Child]:
    running = []
    for child in children:
        with contextlib.suppress(ChildProcessError):  # already reaped
            if os.waitpid(child.pid, os.WNOHANG)[0] == 0:
                running.append(child)
    return running


def start(
    script: str,
    words: Sequence[str],
    cwd: Path,
    *,
    before: Call | None = None,
    after: Call | None = None,
    environment: Mapping[str, str] | None = None,
    limit_s: int = 60,
) -> Child:
    """Start `python SCRIPT WORDS` (a path in the project, or `-m MODULE`) in `cwd`. In the child `before` is called
    first, and `after` at the end unless it is killed; a child that takes longer than `limit_s` is killed.
    """
    started = time.monotonic()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write_end, 1), os.dup2(write_end, 2)
        os.environ.update(HOME=str(cwd), WANDB_MODE="offline", HF_HUB_OFFLINE="1", **(environment or {}))
        _run(script, words, cwd, before, after, limit_s)
    os.close(write_end)
    return Child(pid, started, read_end)


def execute(script: str, words: Sequence[str], cwd: Path, *, before: Call | None = None, limit_s: int = 60) -> Outcome:
    """`start` a command with limited memory, and wait for it."""

    def limit_memory() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
        if before is not None:
            before()

    return wait([start(script, words, cwd, before=limit_memory, limit_s=limit_s)])[0]


def _run(
    script: str, words: Sequence[str], cwd: Path, before: Call | None, after: Call | None, limit_s: int
) -> NoReturn:
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, errors="backslashreplace")  # noqa: SIM115
        os.chdir(cwd)
        signal.alarm(limit_s)
        module = script.removeprefix("-m ")
        sys.argv = [module if module != script else str(ROOT / script), *words]
        if before is not None:
            before()
        if module != script:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    try:
        if after is not None:
            after()
    except Exception:
        traceback.print_exc()
        code = code or 1
    with contextlib.suppress(OSError, ValueError):  # nobody reads the output any more
        sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def broke(outcome: Outcome, limit_s: float) -> str:
    """How a command hung, crashed or ended with another exit code than the four, in a few words; "" if it did not."""
    if outcome.seconds > limit_s or outcome.code == -signal.SIGALRM:
        return f"took {outcome.seconds:.0f} s"
    if outcome.code < 0:
        return f"died of signal {-outcome.code}"
    if "Traceback" in outcome.output:
        return "a traceback"
    if outcome.code not in (0, 1, 2, 3):
        return f"exit code {outcome.code}"
    return ""


def judge(outcome: Outcome, limit_s: float) -> str:
    """What is wrong with how a command ended, in a few words; "" if nothing is."""
    if fault := broke(outcome, limit_s):
        return fault
    if outcome.code and not outcome.last.startswith(("error:", "error [rank ", "interrupted:")):
        return "no last line that names the problem"
    return ""


def clone(source: Path, target: Path) -> Path:
    """Copy a folder, with links as links; return the copy."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target
