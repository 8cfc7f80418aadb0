"""`-m`: each job of a sweep is a child process, so that no process group or GPU memory outlives it.

Jobs and sweep communicate through a folder named in the environment, so that it works with any Hydra launcher: the
process that waits for a job is the sweep itself (basic), a worker (joblib), or on another machine (submitit_slurm).

multirun/.sweep-HOST-PID/
    3.json              written by the process that waits for job 3: its overrides, exit code, seconds
    3.run               written by the run itself: its run directory
    3.error             written by a run that ends with an error: torchrun's error file
    stop                written by the sweep on a signal: running jobs stop, others do not start
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from engine.config import task_overrides
from engine.errors import UsageError
from engine.io import print_rank0
from engine.run.environment import FULL_ERROR, REPORT, SET_FULL_ERROR, SUFFIX, SWEEP
from engine.signals import install, restore
from launcher.children import Child
from launcher.gpus import hold_gpus, visible_gpus
from launcher.naming import label_of, names_of, suffixed, swept_keys
from launcher.outcome import CODES, ERROR_FILE, judge, reported_error, reported_run_dir
from launcher.results import JobResult, publish, read_results

RANKS = "LOOPFORGE_RANKS"
"""Environment variable: processes per job. With more than one, torchrun starts it."""
NAME = "LOOPFORGE_SWEEP_NAME"
"""Environment variable: multirun/<this> is the sweep's own folder; config/base/run.yaml reads it."""
SWEPT = "LOOPFORGE_SWEPT"
GPUS = "LOOPFORGE_GPUS"
STOP = "stop"
LOCAL_PARALLEL = ("joblib", "submitit_local")  # launchers that run several jobs on this machine
POLL_S = 0.5  # how often a waiting process checks whether the sweep was stopped


# --- one job ----------------------------------------------------------------------------------------------------------


def run_child_if_multirun(hydra_config: DictConfig, entry_script: str | Path) -> JobResult | None:
    """In a sweep: run this job as `python entry_script <overrides>` and return its result. Otherwise None.

    Raises: KeyboardInterrupt if the sweep has to stop; UsageError for an invalid number of ranks.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    if SWEEP not in os.environ:
        raise UsageError("hydra.mode=MULTIRUN: write -m on the command line instead")
    job, folder, processes = HydraConfig.get(), Path(os.environ[SWEEP]), ranks()
    number, overrides = int(job.job.num), task_overrides()
    swept = {*os.environ.get(SWEPT, "").split(), *(job.sweeper.get("params") or {})}
    # an optimizing sweeper may try the same values again
    label = label_of(overrides, swept, number, repeats=job.runtime.choices.get("hydra/sweeper") != "basic")
    words = [str(entry_script), *_config_flags(job), *suffixed(overrides, label, names_of(hydra_config))]
    sweep_dir = str(Path(job.sweep.dir).resolve())
    result = JobResult(number=number, overrides=overrides, code=CODES["interrupted"], seconds=0.0, sweep_dir=sweep_dir)
    if (folder / STOP).exists() or not folder.exists():  # a queued job may start after the sweep has ended
        return _stopped(result)
    print_rank0(f"job {number}: {shlex.join(words)}")
    torchrun = ["torchrun", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(torchrun if processes > 1 else ["python"]), *words]
    start, started = time.monotonic(), time.time()
    report, error_file = folder / f"{number}.run", folder / f"{number}.error"
    with ExitStack() as stack:
        environment = _environment(number, folder, processes, stack) | {REPORT: str(report), SUFFIX: f"_{label}"}
        environment[ERROR_FILE] = str(error_file)
        returned, stopped = _watch(Child(command, cwd=job.runtime.cwd, environment=environment), folder / STOP)
    outcome = judge(
        returned,
        reported_run_dir(report),
        started=started,
        stopping=stopped,
        log_error=reported_error(error_file),
    )
    result = replace(
        result,
        code=outcome.exit_code,
        seconds=round(time.monotonic() - start, 3),
        run_dir=None if outcome.run_dir is None else str(outcome.run_dir),
        summary=dict(outcome.summary),
        step=outcome.step,
        error=outcome.message,
    )
    result.write(folder)
    if result.code:
        print_rank0(f"job {number}: exit code {result.code}")
    return _stopped(result) if stopped or (result.state == "interrupted" and _is_sweep_itself()) else result


def _is_sweep_itself() -> bool:
    """Whether this process is the sweep, not one of its workers."""
    return Path(os.environ[SWEEP]).name == _folder_name()


def _folder_name() -> str:
    return f".sweep-{socket.gethostname()}-{os.getpid()}"


def _stopped(result: JobResult) -> JobResult:
    if _is_sweep_itself():
        raise KeyboardInterrupt  # not an Exception: Hydra would start the next job
    return result  # in a worker an exception would make joblib kill the other jobs


def ranks() -> int:
    """Processes per job. Raises: UsageError for an invalid number."""
    text = os.environ.get(RANKS, "1")
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"{RANKS}={text}: expected a whole number of at least 1, the processes of each job")
    return int(text)


def _config_flags(job: Any) -> list[str]:
    """Flags for the config that the parent composed, with absolute folders, so that the child reads the same files."""
    flags = ["--config-name", str(job.job.config_name)]
    names = {"main": "--config-path", "command-line": "--config-dir"}
    for source in job.runtime.config_sources:
        if source.provider in names and source.schema == "file":
            flags += [names[source.provider], str(source.path)]
    return flags


def _environment(number: int, folder: Path, processes: int, stack: ExitStack) -> dict[str, str]:
    """The child's environment, with its own GPUs if jobs run in parallel (held until `stack` exits)."""
    job = HydraConfig.get()
    dropped = {SWEEP, NAME, SWEPT, GPUS} | ({SET_FULL_ERROR, FULL_ERROR} if SET_FULL_ERROR in os.environ else set())
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    gpus = [gpu for gpu in os.environ.get(GPUS, "").split(",") if gpu]
    if job.runtime.choices.get("hydra/launcher") in LOCAL_PARALLEL and gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(hold_gpus(gpus, number, processes, folder.parent, stack))
    return environment


def _watch(child: Child, stop: Path) -> tuple[int, bool]:
    """Wait for the child and forward signals; return (exit code, -N for signal N; whether it was asked to stop)."""
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        # Ctrl-C reaches the sweep and its workers: only the sweep itself forwards a second one.
        if not received or _is_sweep_itself():
            child.send_signal(number)
        received.append(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = install(forward)
    try:
        while (returned := child.wait(POLL_S)) is None:
            if not received and stop.exists():
                forward(signal.SIGTERM, None)
    finally:
        restore(before)
    if signal.SIGUSR2 in received and callable(before[signal.SIGUSR2]):
        before[signal.SIGUSR2](signal.SIGUSR2, None)  # submitit's handler: the checkpoint is written, requeue the job
    return returned, bool(received)


# --- the sweep --------------------------------------------------------------------------------------------------------


@contextmanager
def sweep(words: Sequence[str] = ()) -> Iterator[list[int]]:
    """Context of a sweep with the command line `words`; yields the list that has the jobs' exit codes at the end.

    After a first signal, running jobs write their checkpoints and no others start; a second Ctrl-C stops at once. At
    the end the table of results is printed and written. Raises: UsageError: an empty range, an invalid number of ranks,
    or no folder can be made.
    """
    swept = swept_keys(words)
    ranks()  # raises before anything is written
    parent = Path("multirun").resolve()
    folder = parent / _folder_name()
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process with the same pid
    try:
        folder.mkdir(parents=True)
        results = take_folder(parent)
    except OSError as error:
        raise UsageError(f"{parent} cannot be written ({error.strerror}): start the sweep in another folder") from None
    variables = {SWEEP: str(folder), NAME: results.name, SWEPT: " ".join(swept)}
    variables[GPUS] = ",".join(visible_gpus())
    os.environ |= variables
    codes: list[int] = []

    def stop(number: int, _: Any) -> None:
        if (folder / STOP).exists() and number == signal.SIGINT:
            raise KeyboardInterrupt
        (folder / STOP).touch()

    before = install(stop)
    try:
        yield codes
    finally:
        restore(before)
        for name in variables:
            os.environ.pop(name)
        jobs = read_results(folder)
        stopped = (folder / STOP).exists()
        codes += [job.code for job in jobs] + [CODES["interrupted"]] * stopped
        shutil.rmtree(folder)
        if jobs:
            publish(jobs, complete=not stopped)
        with suppress(OSError):  # usually not empty; but the recipe may use another folder, or there were no jobs
            results.rmdir()


def take_folder(parent: Path) -> Path:
    """Make a new folder in `parent` named by the time, unique even within the same second. Raises: OSError."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        path = parent / (stamp if number == 1 else f"{stamp}_{number}")
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("unreachable")
