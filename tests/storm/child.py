"""Commands in forked children of a process that has torch loaded: tenths of a second instead of seconds."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 3 << 30
"""Bytes that a child may take beyond what it was born with."""


@dataclass(frozen=True)
class Outcome:
    """What a command did; `code` is minus the signal where one ended it."""

    code: int
    output: str
    seconds: float

    @property
    def last(self) -> str:
        """The last line that it printed."""
        return (self.output.strip().splitlines() or [""])[-1]


def preload() -> None:
    """Import what the commands need, once."""
    for name in """
        pretrain train engine.run.launch engine.run.load_run tasks.recursive_reasoning.task
        tasks.language_model.task models.recursive_reasoning.trm models.language_models.gpt dataset.text.loading
        scripts.evaluate scripts.visualize scripts.sample scripts.export_gpt2 scripts.verify_path
        verification.rules.stored
    """.split():
        importlib.import_module(name)


def execute(
    script: str, words: Sequence[str], cwd: Path, *, before: Callable[[], None] | None = None, limit_s: int = 60
) -> Outcome:
    """Run `python SCRIPT WORDS` (a path below the project) in `cwd`; `before` is called in the child first."""
    began = time.monotonic()
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _child(script, words, cwd, theirs, before, limit_s)
    os.close(theirs)
    with open(ours, "rb") as stream:
        output = stream.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return Outcome(code, output.decode("utf-8", "replace"), time.monotonic() - began)


def _child(
    script: str, words: Sequence[str], cwd: Path, pipe: int, before: Callable[[], None] | None, limit_s: int
) -> None:
    code = 1
    try:
        os.dup2(pipe, 1), os.dup2(pipe, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, errors="backslashreplace")  # noqa: SIM115
        os.chdir(cwd)
        os.environ.update(HOME=str(cwd), WANDB_MODE="offline", HF_HUB_OFFLINE="1")
        signal.alarm(limit_s)
        born = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (born + MEMORY, born + MEMORY))
        sys.argv = [str(ROOT / script), *words]
        if before is not None:
            before()
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def broke(outcome: Outcome, limit_s: float) -> str:
    """How a command hung, crashed or left by another exit code than the four, in a few words; "" where it did not."""
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
    """What is wrong with how a command ended, in a few words; "" where nothing is."""
    if fault := broke(outcome, limit_s):
        return fault
    if outcome.code and not outcome.last.startswith(("error:", "interrupted:")):
        return "no last line that says what is wrong"
    return ""


def clone(source: Path, target: Path) -> Path:
    """A copy of a folder, links as links."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target
