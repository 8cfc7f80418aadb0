"""`-m`: each job of a sweep is one child process, so that no process group or GPU memory outlives it.

Works with any launcher: jobs and sweep speak through a folder named in the environment (`launcher/results.py`), so the
process that waits for a job may be the sweep itself (basic), a worker (joblib) or on another machine (submitit_slurm).
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from engine.cli.translate import quote
from engine.config import task_overrides
from engine.errors import UsageError
from engine.io import file_lock, print_rank0
from engine.run.files import read_json
from engine.run.parent import FULL_ERROR, REPORT, SET_FULL_ERROR, SUFFIX, SWEEP
from engine.signals import install, restore
from launcher.results import NAME, STOP, Job, publish, read_jobs, result_of

RANKS = "LOOPFORGE_RANKS"
"""Environment: processes of each job. More than one and torchrun starts it."""
SWEPT = "LOOPFORGE_SWEPT"
GPUS = "LOOPFORGE_GPUS"
# names that two jobs of a sweep must not share
NAMES = ("run_name", "run_dir")
LABEL_LENGTH = 80
AT_ONCE = ("joblib", "submitit_local")  # launchers that run several jobs on this machine
LOOK_S = 0.5  # how often a waiting process looks whether the sweep was stopped
_sweeping = False  # true in the process of the sweep itself


# --- one job ----------------------------------------------------------------------------------------------------------


def run_child_if_multirun(hydra_config: DictConfig, entry_script: str | Path) -> Job | None:
    """Inside a sweep: run this job as `python entry_script <overrides>` and return how it ended. Else None.

    Raises: KeyboardInterrupt when the sweep is to stop; UsageError on a number of ranks that is none.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    if SWEEP not in os.environ:
        raise UsageError("hydra.mode=MULTIRUN: write -m on the command line instead")
    job = HydraConfig.get()
    number, given = int(job.job.num), task_overrides()
    folder = Path(os.environ[SWEEP])
    swept = {*os.environ.get(SWEPT, "").split(), *(job.sweeper.get("params") or {})}
    # an optimizer may try the same values again
    label = label_of(given, swept, number, repeats=job.runtime.choices.get("hydra/sweeper") != "basic")
    overrides = suffixed(given, label, _names(hydra_config))
    command = [str(entry_script), *_config_flags(job), *overrides]
    record = Job(number=number, overrides=given, code=3, seconds=0.0, sweep_dir=str(Path(job.sweep.dir).resolve()))
    if (folder / STOP).exists() or not folder.exists():  # a job may leave a queue after the sweep has ended
        return _stopped(record)
    print_rank0(f"job {number}: {shlex.join(command)}")
    began = time.monotonic()
    with ExitStack() as stack:
        environment = _environment(number, folder, stack) | {SUFFIX: f"_{label}"}
        code, stopped = _run([*_python(ranks()), *command], environment, folder / STOP)
    seconds = round(time.monotonic() - began, 3)
    record = replace(record, code=max(code, 0), seconds=seconds, **result_of(folder / f"{number}.run"))
    if code < 0:
        record.code, record.error = 1, f"killed by {signal.Signals(-code).name}"
    if record.code:
        record.summary = {}
        if ranks() > 1 and record.run_dir:  # torchrun says 1 whatever it was
            record.code = read_json(Path(record.run_dir) / "status.json").get("exit_code") or 1
    record.write(folder)
    if record.code:
        print_rank0(f"job {number}: exit code {record.code}")
    return _stopped(record) if stopped or (record.code == 3 and _sweeping) else record


def _stopped(record: Job) -> Job:
    if _sweeping:
        raise KeyboardInterrupt  # not an Exception: Hydra would go on with the next job
    return record  # a worker just has nothing more to do: an exception would make joblib kill the other jobs


def _names(config: DictConfig) -> dict[str, str]:
    """The config's own names that all jobs would share; a run_dir that holds the run's name follows that."""
    found = {key: OmegaConf.select(config, key) for key in NAMES}
    if "run_name" in str(OmegaConf.to_container(config).get("run_dir")):  # type: ignore[union-attr]
        del found["run_dir"]
    return {key: str(value) for key, value in found.items() if value is not None}


def suffixed(overrides: list[str], label: str, names: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Join the job's label to explicit values of NAMES: of the command line, else `names` of the config."""
    result, seen = [], set()
    for override in OverridesParser.create().parse_overrides(overrides):
        key, line = override.key_or_group, str(override.input_line)
        if key in NAMES and not override.is_delete() and override.value() is not None:
            line = f"++{key}={quote(f'{override.value()}_{label}')}"
        seen.add(key)
        result.append(line)
    return result + [f"++{key}={quote(f'{name}_{label}')}" for key, name in names.items() if key not in seen]


def label_of(overrides: list[str], swept: Collection[str], number: int, *, repeats: bool = False) -> str:
    """What a job's name ends in: the swept values, as in `lr-0.001_seed-0`.

    The job's number is added where that would not tell it from every other job: values that a folder's name cannot
    hold, very long ones, none at all, or a sweeper that `repeats` itself.
    """
    parts, exact = [], not repeats
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if key in swept and key not in (*NAMES, "project_name"):
            text = str(override.input_line).partition("=")[2]
            clean = re.sub(r"[^A-Za-z0-9.+-]+", "-", text)
            exact = exact and clean == text
            parts.append(f"{re.split('[./]', key)[-1]}-{clean}")
    label = "_".join(parts)
    exact = exact and 0 < len(label) <= LABEL_LENGTH
    return label if exact else "_".join([label[:LABEL_LENGTH], str(number)] if label else [str(number)])


def ranks() -> int:
    """Processes of each job. Raises: UsageError on a number that is none."""
    text = os.environ.get(RANKS, "1")
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"{RANKS}={text}: expected a whole number of at least 1, the processes of each job")
    return int(text)


def _python(processes: int) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *(torchrun if processes > 1 else [])]


def _config_flags(job: Any) -> list[str]:
    """The config that the parent composed, by absolute folder, so that the child sees the same files."""
    flags = ["--config-name", str(job.job.config_name)]
    names = {"main": "--config-path", "command-line": "--config-dir"}
    for source in job.runtime.config_sources:
        if source.provider in names and source.schema == "file":
            flags += [names[source.provider], str(source.path)]
    return flags


def _environment(number: int, folder: Path, stack: ExitStack) -> dict[str, str]:
    """The child's environment: where to report, its GPUs (held until `stack` ends)."""
    job = HydraConfig.get()
    dropped = {SWEEP, NAME, SWEPT, GPUS} | ({SET_FULL_ERROR, FULL_ERROR} if SET_FULL_ERROR in os.environ else set())
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    environment[REPORT] = str(folder / f"{number}.run")
    gpus = os.environ.get(GPUS, "").split(",") if os.environ.get(GPUS) else []
    if job.runtime.choices.get("hydra/launcher") in AT_ONCE and gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(pick_gpus(gpus, number, ranks(), folder.parent, stack))
    return environment


def pick_gpus(gpus: Sequence[str], number: int, count: int, folder: Path, stack: ExitStack) -> list[str]:
    """`count` of `gpus` for job `number`: those that no other job holds, from the job's number on, then shared ones.

    They are held through locks in `folder` until `stack` ends.
    """
    turn = [gpus[(number * count + i) % len(gpus)] for i in range(len(gpus))]
    picked: list[str] = []
    for gpu in turn:
        if len(picked) < count:
            try:
                stack.enter_context(file_lock(folder / f".gpu-{gpu}" / "lock", wait=False))
            except UsageError:  # another job holds it
                continue
            picked.append(gpu)
    return sorted([*picked, *(gpu for gpu in turn if gpu not in picked)][:count], key=turn.index)


def _run(command: list[str], environment: dict[str, str], stop: Path) -> tuple[int, bool]:
    """Exit code (-N: killed by signal N), and whether it was told to stop.

    The child has its own session: each signal reaches it once.
    """
    child = subprocess.Popen(command, cwd=HydraConfig.get().runtime.cwd, env=environment, start_new_session=True)
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        # Ctrl-C reaches the sweep and its workers alike: only the sweep itself passes on a second one.
        if not received or _sweeping:
            # torchrun hands on no other signal to its ranks than these
            child.send_signal(number if number in (signal.SIGINT, signal.SIGTERM) else signal.SIGTERM)
        received.append(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = install(forward)
    try:
        while (code := _wait(child)) is None:
            if not received and stop.exists():
                forward(signal.SIGTERM, None)
    finally:
        restore(before)
    if signal.SIGUSR2 in received and callable(before[signal.SIGUSR2]):
        before[signal.SIGUSR2](signal.SIGUSR2, None)  # submitit: the checkpoint is written, queue the job again
    return code, bool(received)


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(timeout=LOOK_S)
    except subprocess.TimeoutExpired:
        return None


# --- the sweep --------------------------------------------------------------------------------------------------------


@contextmanager
def sweep(words: Sequence[str] = ()) -> Iterator[list[int]]:
    """Surround a sweep of the command line `words`; yields the list that holds the jobs' exit codes in the end.

    A first signal lets running jobs write their checkpoints and starts no others; a second Ctrl-C stops at once.
    At the end the table of results is printed and written.
    """
    global _sweeping
    parent = Path("multirun").resolve()
    folder = parent / f".sweep-{socket.gethostname()}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)  # of a process of the same number that was killed
    try:
        folder.mkdir(parents=True)
        results = take_folder(parent)
    except OSError as error:
        raise UsageError(f"{parent} cannot be written ({error.strerror}): start the sweep in another folder") from None
    os.environ |= {
        SWEEP: str(folder), NAME: results.name, SWEPT: " ".join(swept_keys(words)), GPUS: ",".join(visible_gpus())
    }  # fmt: skip
    codes: list[int] = []

    def stop(number: int, _: Any) -> None:
        if (folder / STOP).exists() and number == signal.SIGINT:
            raise KeyboardInterrupt
        (folder / STOP).touch()

    before = install(stop)
    _sweeping = True
    try:
        yield codes
    finally:
        _sweeping = False
        restore(before)
        for name in (SWEEP, NAME, SWEPT, GPUS):
            os.environ.pop(name)
        jobs = read_jobs(folder)
        stopped = (folder / STOP).exists()
        codes += [job.code for job in jobs] + [3] * stopped
        shutil.rmtree(folder)
        if jobs:
            publish(jobs, complete=not stopped)
        with suppress(OSError):  # not empty, as a rule; but the recipe may name another folder, or there were no jobs
            results.rmdir()


def take_folder(parent: Path) -> Path:
    """A new folder in `parent` named by the time, which no other sweep of the same second has. Raises: OSError."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        path = parent / (stamp if number == 1 else f"{stamp}_{number}")
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("unreachable")


def swept_keys(words: Sequence[str]) -> list[str]:
    """The keys that the overrides among `words` sweep. Raises: Hydra's error on one that it cannot read."""
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by number or as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.splitlines()
    return [str(number) for number, _ in enumerate(line for line in listed if line.startswith("GPU "))]
