"""Carries out a launch: started here, submitted to Slurm, or written as a SkyPilot task."""

from __future__ import annotations

import os
import shlex
import shutil
import sys

from engine.errors import UsageError
from engine.io import atomic_write_text, print_rank0
from launcher import skypilot
from launcher.children import with_our_python
from launcher.destination import LaunchSpec, slurm_node_line, slurm_parameters
from launcher.once import run_once
from launcher.queue import Options, nothing_to_do, waiting
from launcher.runner import run_jobs
from launcher.slurm import batch_text, earlier_hosts, submit

REQUEUES = 100
"""How often a Slurm job that reaches its limit is queued again: each time it resumes, until the run itself ends."""


def launch(spec: LaunchSpec, to: str, *, dry: bool) -> int:
    """Launch, or (`dry`) print exactly what would be started or submitted; return the exit code. Raises: UsageError."""
    if dry and to != "skypilot" and (why := _nothing_to_start(spec)):
        sys.stderr.write(f"note: without --dry-run: {why}\n")
    if to == "slurm":
        return to_slurm(spec, dry)
    return to_skypilot(spec, dry) if to == "skypilot" else start_here(spec, to, dry)


def start_here(spec: LaunchSpec, to: str, dry: bool) -> int:
    """local and torchrun: run it and wait; a job of a file is run by a runner, which updates the marks."""
    words, job = spec.words(to), spec.job
    if dry:
        variables = [f"{name}={shlex.quote(value)}" for name, value in job.env.items()]
        print_rank0(" ".join([f"cd {shlex.quote(str(spec.cwd))} &&", *variables, shlex.join(with_our_python(words))]))
        return 0
    if spec.ledger is None or spec.node:  # of several nodes only the first updates the marks
        outcome = run_once(words, cwd=spec.cwd, env=job.env)
        if outcome.state != "done" and outcome.message:
            print_rank0(f"{outcome.state} (exit code {outcome.exit_code}): {outcome.message}")
        return outcome.exit_code
    ranks = spec.ranks if to == "torchrun" else None
    hosts = earlier_hosts(job, os.environ)
    only = frozenset([job.key])
    options = Options(spec.cwd, spec.logs, only=only, once=True, failed=True, take_over=hosts, ranks=ranks)
    return run_jobs(spec.ledger, options)


def to_slurm(spec: LaunchSpec, dry: bool) -> int:
    """One Slurm job, which runs this script on each of its nodes."""
    folder, parameters = spec.logs / "slurm", slurm_parameters(spec)
    if dry:
        print_rank0(batch_text(spec.name, spec.gpus, folder=folder, parameters=parameters).rstrip("\n"))
        return 0
    if why := _nothing_to_start(spec):
        raise UsageError(why)
    if shutil.which("srun") is None:
        raise UsageError("there is no srun here: submit where the cluster's commands are; --dry-run works anywhere")
    line = ["bash", "-c", f"exec {slurm_node_line(spec)}"]
    requeues = REQUEUES if spec.own["requeues"] is None else spec.own["requeues"]
    queued = [(spec.name, spec.gpus, line)]
    (number,) = submit(queued, folder=folder, cwd=spec.cwd, parameters=parameters, requeues=requeues)
    print_rank0(f"{spec.name}: queued as Slurm job {number}, output in {folder}/{number}_0_log.out")
    return 0


def _nothing_to_start(spec: LaunchSpec) -> str:
    """Why the job of a file would not be started, by its mark; "" if it would, or no marks are updated."""
    if spec.ledger is None or spec.node:  # of several nodes only the first updates the marks
        return ""
    options = Options(spec.cwd, spec.logs, only=frozenset([spec.job.key]), failed=True)
    return "" if waiting(spec.ledger, options) else nothing_to_do(spec.ledger, options)


def to_skypilot(spec: LaunchSpec, dry: bool) -> int:
    """Write the file of a SkyPilot task."""
    description = skypilot.task(spec)
    note = skypilot.check(description)
    text = skypilot.as_yaml(description)
    if dry:
        print_rank0(text.rstrip("\n"))
        return 0
    out = spec.own["out"] or spec.cwd / f"{spec.name}.sky.yaml"
    atomic_write_text(out, text)
    print_rank0(f"wrote {out}{f' ({note})' if note else ''}")
    if not spec.own["checkpoints"]:
        print_rank0("its checkpoints go with the machine: --checkpoints s3://BUCKET keeps them, and a restart resumes")
    print_rank0(f"submit it: sky jobs launch {shlex.quote(str(out))}")
    return 0
