"""`-m`: each job of a sweep is one child process, so that no process group or GPU memory outlives it.

Works with any launcher: codes travel through a file named in the environment, not through the launcher.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from engine.io import say
from engine.translate import quote

CODES = "LOOPFORGE_JOB_CODES"
FULL_ERROR = "HYDRA_FULL_ERROR"
OURS = "LOOPFORGE_SET_FULL_ERROR"  # we set FULL_ERROR for ourselves: a child's user did not ask
# names that two jobs of a sweep must not share
NUMBERED = ("run_name", "run_dir")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def run_child_if_multirun(hydra_config: DictConfig, entry_script: str | Path) -> bool:
    """Inside a sweep: run this job as `python entry_script <overrides>` and return True. Else False.

    An exit code of 3 (stopped by a signal) ends the sweep. Raises: KeyboardInterrupt then.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    job = HydraConfig.get()
    number = int(job.job.num)
    overrides = numbered(list(job.overrides.task), number, OmegaConf.select(hydra_config, "run_name"))
    command = [sys.executable, str(entry_script), *_config_flags(job), *overrides]
    say(f"job {number}: {shlex.join(command[1:])}")
    code, stopped = _run(command)
    if CODES in os.environ:
        with open(os.environ[CODES], "a", encoding="ascii") as stream:
            stream.write(f"{code}\n")
    if code:
        say(f"job {number}: exit code {code}")
    if stopped:
        raise KeyboardInterrupt  # not an Exception: Hydra would go on with the next job
    return True


def numbered(overrides: list[str], number: int, run_name: str | None = None) -> list[str]:
    """Join the job number to an explicit run_name (of the command line, else of the config) and run_dir."""
    result, seen = [], set()
    for override in OverridesParser.create().parse_overrides(overrides):
        key, line = override.key_or_group, str(override.input_line)
        if key in NUMBERED and not override.is_delete() and override.value() is not None:
            line = f"++{key}={quote(f'{override.value()}_{number}')}"
        seen.add(key)
        result.append(line)
    if run_name is not None and "run_name" not in seen:
        result.append(f"++run_name={quote(f'{run_name}_{number}')}")
    return result


@contextmanager
def job_codes(sweep: bool) -> Iterator[Callable[[], list[int]]]:
    """While a sweep runs, a file under multirun/ to which its jobs append exit codes; yields a reader."""
    if not sweep:
        yield list
        return
    folder = Path("multirun").resolve()
    folder.mkdir(exist_ok=True)
    path = folder / f".codes-{os.getpid()}"
    path.write_text("", encoding="ascii")
    os.environ[CODES] = str(path)
    collected: list[int] = []
    try:
        yield lambda: collected
    finally:
        os.environ.pop(CODES)
        collected += [int(line) for line in path.read_text(encoding="ascii").split()]
        path.unlink()


def _config_flags(job: Any) -> list[str]:
    """The config that the parent composed, by absolute folder, so that the child sees the same files."""
    flags = ["--config-name", str(job.job.config_name)]
    names = {"main": "--config-path", "command-line": "--config-dir"}
    for source in job.runtime.config_sources:
        if source.provider in names and source.schema == "file":
            flags += [names[source.provider], str(source.path)]
    return flags


def _run(command: list[str]) -> tuple[int, bool]:
    """Exit code, and whether to stop. The child has its own session: each signal reaches it once."""
    dropped = (CODES, OURS, FULL_ERROR) if OURS in os.environ else (CODES,)
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    child = subprocess.Popen(command, cwd=HydraConfig.get().runtime.cwd, env=environment, start_new_session=True)
    stopped: list[int] = []

    def forward(number: int, _: Any) -> None:
        stopped.append(number)
        child.send_signal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (code if code >= 0 else 1), bool(stopped) or code == 3
