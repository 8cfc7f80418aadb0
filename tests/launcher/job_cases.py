"""What the tests of run_jobs.py share: a fake entry script that notes what happens to it, and ways to look at it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.jobs import read
from scripts import run_jobs
from tests.conftest import ROOT

RUNNER = ROOT / "scripts" / "run_jobs.py"
# Says that it started and ended in its own file making; `status` is what a run would leave in status.json.
FAKE = """
import datetime, json, os, signal, sys, time
name, what = sys.argv[1], sys.argv[2:]
def note(text):
    with open("events", "a") as stream:
        stream.write(f"{name} {text} {os.getpid()}\\n")
def leave(state, code, step):
    folder = f"checkpoints/p/{name}"
    os.makedirs(folder, exist_ok=True)
    time_now = datetime.datetime.now(datetime.UTC).isoformat()
    with open(f"{folder}/status.json", "w") as stream:
        json.dump({"state": state, "step": step, "exit_code": code, "message": None, "time": time_now}, stream)
def stopped(*_):
    note("signalled")
    if "stubborn" not in what:
        leave("interrupted", 3, 5)
        sys.exit(1 if "torchrun" in what else 3)
signal.signal(signal.SIGTERM, stopped)
note("start")
os.makedirs(f"checkpoints/p/{name}", exist_ok=True)
print(f"checkpoints/p/{name}: new run", flush=True)
with open(os.environ["LOOPFORGE_JOB_REPORT"], "w") as stream:  # as engine.run.environment.report_run_dir does
    stream.write(os.path.abspath(f"checkpoints/p/{name}"))
tries = sum(line.startswith(f"{name} start ") for line in open("events"))
for word in what:
    key, _, value = word.partition("=")
    if key == "sleep":
        end = time.time() + float(value)
        while time.time() < end:
            time.sleep(0.01)
    if key == "file":  # for as long as it is not there
        while not os.path.exists(value):
            time.sleep(0.01)
    if key == "until" and tries < int(value):
        note("end"); print("error: not yet"); sys.exit(1)
    if key == "env":
        note("env:" + os.environ.get(value, "none"))
    if key == "status":
        state, code, step = value.split(",")
        leave(state, int(code), int(step)); note("end"); sys.exit(1)
    if key == "exit":
        note("end"); sys.exit(int(value))
note("end")
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with a fake entry script and a folder for job files."""
    (tmp_path / "job.py").write_text(FAKE)
    (tmp_path / "jobs").mkdir()
    return tmp_path


def write(place: Path, *lines: str) -> Path:
    path = place / "jobs" / "jobs-a.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def begin(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(RUNNER), "jobs-a.txt", *words],
            cwd=place,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    for line in events(place):  # jobs outlive a runner that was killed
        name, what, pid = line.split()
        if what == "start" and f"{name} end {pid}" not in events(place):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def run(place: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = run_jobs.main([str(place / "jobs" / "jobs-a.txt"), "--cwd", str(place), *words])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def marks(place: Path) -> str:
    return "".join(job.mark for job in read(place / "jobs" / "jobs-a.txt").jobs)


def events(place: Path) -> list[str]:
    path = place / "events"
    return path.read_text().splitlines() if path.exists() else []


def count(place: Path, text: str) -> int:
    return sum(re.match(rf"{text}( |$)", line) is not None for line in events(place))


def opens_the_lock(pid: int) -> bool:
    try:
        return any(os.readlink(name).endswith(".state/lock") for name in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return not Path("/proc").is_dir()


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def printed(process: subprocess.Popen[str], text: str) -> str:
    """What a runner prints up to the line with `text`; it blocks until then."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))
