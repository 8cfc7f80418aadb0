"""An order carried out: started here, submitted to Slurm, or written down for a cloud."""

from __future__ import annotations

import os
import shlex
import shutil
import sys

from engine.errors import UsageError
from engine.io import atomic_write_text, print_rank0
from launcher import skypilot
from launcher.children import with_our_python
from launcher.destination import Order, slurm_node_line, slurm_parameters
from launcher.once import run_once
from launcher.queue import Options, nothing_to_do, waiting
from launcher.runner import run_jobs
from launcher.slurm import batch_text, earlier_hosts, submit

REQUEUES = 100
"""How often a Slurm job that reaches its limit is queued again: each life resumes, so the end is the run's own."""


def launch(order: Order, to: str, *, dry: bool) -> int:
    """Do it, or (`dry`) print exactly what would be started or submitted; the exit code. Raises: UsageError."""
    if dry and to != "skypilot" and (why := _not_to_do(order)):
        sys.stderr.write(f"note: without --dry-run: {why}\n")
    if to == "slurm":
        return to_slurm(order, dry)
    return to_skypilot(order, dry) if to == "skypilot" else start_here(order, to, dry)


def start_here(order: Order, to: str, dry: bool) -> int:
    """local and torchrun: run it and wait; a job of a file through its runner, which keeps the marks."""
    words, job = order.words(to), order.job
    if dry:
        variables = [f"{name}={shlex.quote(value)}" for name, value in job.env.items()]
        print_rank0(" ".join([f"cd {shlex.quote(str(order.cwd))} &&", *variables, shlex.join(with_our_python(words))]))
        return 0
    if order.ledger is None or order.node:  # of several nodes the first keeps the marks
        outcome = run_once(words, cwd=order.cwd, env=job.env)
        if outcome.state != "done" and outcome.message:
            print_rank0(f"{outcome.state} (exit code {outcome.exit_code}): {outcome.message}")
        return outcome.exit_code
    ranks = order.ranks if to == "torchrun" else None
    hosts = earlier_hosts(job, os.environ)
    only = frozenset([job.key])
    options = Options(order.cwd, order.logs, only=only, once=True, failed=True, take_over=hosts, ranks=ranks)
    return run_jobs(order.ledger, options)


def to_slurm(order: Order, dry: bool) -> int:
    """One Slurm job, which runs this script on each of its nodes."""
    folder, parameters = order.logs / "slurm", slurm_parameters(order)
    if dry:
        print_rank0(batch_text(order.name, order.gpus, folder=folder, parameters=parameters).rstrip("\n"))
        return 0
    if why := _not_to_do(order):
        raise UsageError(why)
    if shutil.which("srun") is None:
        raise UsageError("there is no srun here: submit where the cluster's commands are; --dry-run works anywhere")
    line = ["bash", "-c", f"exec {slurm_node_line(order)}"]
    requeues = REQUEUES if order.own["requeues"] is None else order.own["requeues"]
    queued = [(order.name, order.gpus, line)]
    (number,) = submit(queued, folder=folder, cwd=order.cwd, parameters=parameters, requeues=requeues)
    print_rank0(f"{order.name}: queued as Slurm job {number}, output in {folder}/{number}_0_log.out")
    return 0


def _not_to_do(order: Order) -> str:
    """Why the job of a file would not be started: its mark; "" where it would, and where no marks are kept."""
    if order.ledger is None or order.node:  # of several nodes the first keeps the marks
        return ""
    options = Options(order.cwd, order.logs, only=frozenset([order.job.key]), failed=True)
    return "" if waiting(order.ledger, options) else nothing_to_do(order.ledger, options)


def to_skypilot(order: Order, dry: bool) -> int:
    """The file of a SkyPilot task."""
    description = skypilot.task(order)
    note = skypilot.check(description)
    text = skypilot.as_yaml(description)
    if dry:
        print_rank0(text.rstrip("\n"))
        return 0
    out = order.own["out"] or order.cwd / f"{order.name}.sky.yaml"
    atomic_write_text(out, text)
    print_rank0(f"wrote {out}{f' ({note})' if note else ''}")
    if not order.own["checkpoints"]:
        print_rank0("its checkpoints go with the machine: --checkpoints s3://BUCKET keeps them, and a restart resumes")
    print_rank0(f"submit it: sky jobs launch {shlex.quote(str(out))}")
    return 0
