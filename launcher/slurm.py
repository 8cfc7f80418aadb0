"""Slurm through submitit: `run_jobs.py --launcher slurm` (one Slurm job per line) and `launch.py --to slurm`.

Each Slurm job is a runner of ours on its node. The state is in the job file: a line is marked when its Slurm job
starts, so submitting twice runs nothing twice.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from launcher.gpus import gpus_needed
from launcher.jobs import Job
from launcher.ledger import Ledger
from launcher.queue import Options

REFUSALS = (AssertionError, RuntimeError, OSError, NameError, ValueError, TypeError, subprocess.CalledProcessError)
"""What submitit raises for a bad parameter, or a problem with sbatch or the machine."""


@dataclass
class NodeRunner:
    """What Slurm executes on each node: a runner of ours; submitted again after a preemption or time limit."""

    command: list[str]
    cwd: str

    def __call__(self) -> int:
        self._process = subprocess.Popen(self.command, cwd=self.cwd)
        _await_end(self._process.pid)
        code = self._process.wait()
        if code and os.environ.get("SLURM_PROCID", "0") == "0":  # the other nodes' tasks end with 0
            sys.exit(code)
        return code

    def checkpoint(self) -> Any:
        """Called by submitit on preemption or before the time limit: the run saves, and the job is queued again."""
        import submitit

        if process := getattr(self, "_process", None):  # none if the signal came before the start
            process.send_signal(signal.SIGTERM)
            _await_end(process.pid)
        return submitit.helpers.DelayedSubmission(NodeRunner(self.command, self.cwd))


def _await_end(pid: int) -> None:
    """Wait for a child without reaping it. submitit calls `checkpoint` in a signal handler, inside of `__call__`, where
    a second `Popen.wait` would wait for ever for the lock that the first one holds.
    """
    with contextlib.suppress(ChildProcessError):  # already reaped
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def runner_commands(script: Path, ledger: Ledger, options: Options) -> list[tuple[str, int, list[str]]]:
    """(job id, GPUs, command that runs `script` for this line only) for each line to run."""
    selected = [job for job in ledger.read().jobs if options.selects(job) and job.mark in options.marks]
    common = ["--once", "--retries", str(options.retries), "--logs", str(options.logs), "--cwd", str(options.cwd)]
    common += ["--failed"] * options.failed + [word for host in options.take_over for word in ("--take-over", host)]
    return [
        (
            job.id,
            gpus_needed(job.argv, 1, options.cwd),
            [sys.executable, str(script), str(ledger.path), "--only", job.key, *common],
        )
        for job in (selected[:1] if options.once else selected)
    ]


def submit(
    commands: Sequence[tuple[str, int, list[str]]],
    *,
    folder: Path,
    cwd: Path,
    parameters: Mapping[str, Any],
    requeues: int | None = None,
) -> list[str]:
    """Submit each (job id, GPUs, runner command) as a Slurm job; return Slurm's job ids.

    `parameters` are passed to submitit's `update_parameters` (timeout_min, slurm_partition, ...); gpus_per_node is the
    job's own unless given. `requeues`: how often a job that reaches its time limit is queued again; None: submitit's 3.
    Raises: UsageError without submitit, or if Slurm refuses.
    """
    if not commands:
        return []
    submitit = _submitit()
    with contextlib.suppress(ImportError):  # comes with submitit; a node need not be able to import launcher/
        import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
    limit = {} if requeues is None else {"slurm_max_num_timeout": requeues}
    with _one_line():
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm", **limit)
        ids = []
        for name, gpus, command in commands:
            own = {"gpus_per_node": gpus} if gpus else {}
            executor.update_parameters(**{"name": name, **own, **parameters})
            ids.append(str(executor.submit(NodeRunner(command, str(cwd))).job_id))
    return ids


def batch_text(name: str, gpus: int, *, folder: Path, parameters: Mapping[str, Any]) -> str:
    """The exact batch file of `submit`; nothing is submitted or written, and Slurm need not be installed."""
    submitit = _submitit()

    class Preview(submitit.SlurmExecutor):  # type: ignore[misc, name-defined]
        @classmethod
        def affinity(cls) -> int:
            return 1  # submitit's own method looks for srun

    values = {"name": name, **({"gpus_per_node": gpus} if gpus else {}), **parameters}
    with _one_line():
        executor = Preview(folder=folder)
        general = {key: value for key, value in values.items() if not key.startswith("slurm_")}
        own = {key.removeprefix("slurm_"): value for key, value in values.items() if key.startswith("slurm_")}
        executor.update_parameters(**{**executor._convert_parameters(general), **own})
        return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UsageError("Slurm needs submitit: pip install -e '.[slurm]'") from None
    return submitit


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn errors of submitit and sbatch into a UsageError of one line."""
    try:
        yield
    except REFUSALS as error:
        raise UsageError(f"Slurm: {(str(error).splitlines() or [type(error).__name__])[0]}") from None


def earlier_hosts(job: Job, environment: Mapping[str, str]) -> frozenset[str]:
    """Hosts whose mark the job may still have: in a requeued Slurm job, the node of its previous run."""
    requeued = environment.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    return frozenset([job.owner[1]]) if requeued and job.owner and job.owner[1] else frozenset()


def parameter(text: str) -> tuple[str, Any]:
    """An argparse type: `key=value` of --slurm; digits become an integer."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r}: expected key=value, e.g. timeout_min=720")
    return name, int(value) if value.isdigit() else value
