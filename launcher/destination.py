"""Destinations of a launch: the options of launch.py for each, and the command that a node there runs."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import did_you_mean, user_path
from engine.registry import ROOT
from launcher.command import parse
from launcher.gpus import gpus_needed
from launcher.jobs import Job, command_job, fault_of, find
from launcher.ledger import Ledger
from launcher.queue import names_of
from launcher.ranks import PORT, Ranks, ranks_of

DESTINATIONS = ("local", "torchrun", "slurm", "skypilot")
ONLY_FOR = {
    **dict.fromkeys(("ranks", "nodes"), DESTINATIONS[1:]),
    **dict.fromkeys(("node_rank", "head"), ("torchrun",)),
    **dict.fromkeys(("gpus", "cpus", "mem", "name"), ("slurm", "skypilot")),
    **dict.fromkeys(("partition", "time", "account", "qos", "grace", "requeues", "slurm"), ("slurm",)),
    **dict.fromkeys(("accelerator", "spot", "infra", "checkpoints", "prepare", "restarts", "out"), ("skypilot",)),
}
"""Options that only some destinations have."""
GRACE_S = 90
"""Slurm's warning time before its limit, in which a run finishes its step and saves."""
LAUNCH = ROOT / "scripts" / "launch.py"


@dataclass(frozen=True)
class LaunchSpec:
    """What to launch, where, and with how many processes."""

    job: Job
    ledger: Ledger | None
    """the job's file; None for a bare command"""
    cwd: Path
    logs: Path
    per_node: str
    """processes per node: a number, or torchrun's `gpu`, `cpu`, `auto`"""
    nodes: int = 1
    node: int | None = None
    """rank of this node, for torchrun"""
    head: str = "HOST"
    name: str = ""
    gpus: int = 0
    """per node"""
    cpus: int | None = None
    """per node"""
    mem_gb: float | None = None
    """per node"""
    own: Mapping[str, Any] = field(default_factory=dict)
    """options that only this destination has, by name"""

    @property
    def ranks(self) -> Ranks:
        """The processes as seen from this node."""
        return Ranks(self.per_node, self.nodes, self.node or 0, self.head)

    @property
    def distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.nodes > 1 or self.per_node != "1"

    def words(self, destination: str) -> tuple[str, ...]:
        """The command with its ranks, as it will run. Raises: UsageError if it cannot have ranks."""
        plain = destination == "local" or (destination != "torchrun" and not self.distributed)
        return self.job.argv if plain else self.ranks.words(self.job.argv)

    def script(self, words: Sequence[str]) -> dict[str, str] | None:
        """The word that names a script of the repository -> its full path; None if the command has no such script.

        Raises: UsageError if the script does not exist.
        """
        script = parse(tuple(words)).script
        if script is None:
            return None
        file = self.cwd / user_path(script)
        if not file.is_file():
            raise UsageError(f"there is no {script} in {self.cwd}: --cwd DIR says where the command runs")
        ours = file.parent.resolve().is_relative_to(ROOT.resolve())
        return {word: str(file) for word in words if word.removeprefix("./") == script} if ours else None

    def node_line(self, python: str, launch: str, variables: Mapping[str, str], *, by_file: bool) -> str:
        """The shell command of each node: launch.py again, which starts torchrun there and reads how the run ended.

        `variables`: shell variables with facts on the nodes, by option (node_rank, head, ...). `by_file`: name the job
        by its file, whose marks are then updated, and not by its command.
        """
        options = {"nodes": str(self.nodes), "ranks": self.per_node} if self.distributed else {}
        if self.nodes > 1:
            options |= variables
        elif "ranks" in variables and self.distributed:
            options["ranks"] = variables["ranks"]
        flags = [f"--{key.replace('_', '-')} {value}" for key, value in options.items()]
        if by_file and self.ledger is not None:
            where = {"cwd": str(self.cwd), "logs": str(self.logs)}
            flags += [f"--{key} {shlex.quote(value)}" for key, value in where.items()]
            job = shlex.quote(f"{self.ledger.path}:{self.job.key}")
        else:
            job = shlex.join(["--", *(f"{name}={value}" for name, value in self.job.env.items()), *self.job.argv])
        to = "torchrun" if self.distributed else "local"
        return " ".join([python, launch, f"--to {to} --no-verify", *flags, job])


def spec_of(args: argparse.Namespace) -> LaunchSpec:
    """The launch described by the arguments of launch.py. Raises: UsageError."""
    for option, places in ONLY_FOR.items():
        if args.to not in places and getattr(args, option) not in (None, [], False):
            raise UsageError(f"--{option.replace('_', '-')} is for --to {' or '.join(places)}, not for {args.to}")
    cwd = args.cwd.absolute()
    if not cwd.is_dir():
        raise UsageError(f"--cwd={args.cwd}: there is no such folder")
    if args.to == "skypilot" and cwd != ROOT:
        raise UsageError(f"--to skypilot copies the folder in which the command runs: start it in {ROOT}")
    job, ledger = job_of(args.job, args.command)
    nodes = args.nodes or 1
    if args.to == "torchrun" and nodes > 1 and (args.node_rank is None or args.head is None):
        raise UsageError(f"--nodes {nodes}: give --node-rank (0 to {nodes - 1}) and --head, the HOST:PORT of node 0")
    if args.node_rank is not None and args.node_rank >= nodes:
        raise UsageError(f"--node-rank {args.node_rank}: expected 0 to {nodes - 1} (--nodes {nodes})")
    per_node = ranks_of(job.argv) if args.ranks is None else str(args.ranks)
    if args.to in ("slurm", "skypilot") and not per_node.isdigit():
        raise UsageError(f"how many processes on each node? The command says {per_node}: give --ranks N")
    spec = LaunchSpec(
        job=job,
        ledger=ledger,
        cwd=cwd,
        logs=args.logs.absolute() if args.logs else cwd / "logs" / (ledger.path.stem if ledger else "launch"),
        per_node=per_node,
        nodes=nodes,
        node=args.node_rank,
        head=args.head or "HOST",
        name=args.name or (as_name(job.id) if ledger or job.run_name else "launch"),
        cpus=args.cpus,
        mem_gb=args.mem,
        own={option: getattr(args, option) for option in ONLY_FOR},
    )
    gpus = gpus_needed(spec.words(args.to), 1, ROOT) if args.gpus is None else args.gpus
    return replace(spec, gpus=gpus)


def job_of(text: str | None, command: list[str]) -> tuple[Job, Ledger | None]:
    """The job FILE:NAME and its file, or the command after `--`. Raises: UsageError."""
    if bool(text) == bool(command):
        raise UsageError("name one job, as FILE:NAME, or give a command after --")
    if not text:
        job, ledger = command_job(command), None
    else:
        file, _, name = text.rpartition(":")
        ledger = Ledger(find(file or text, (".", ROOT)))
        jobs = ledger.read().jobs
        if not jobs:
            raise UsageError(f"{ledger.path} has no job: a job is a line that begins with '[ ] '")
        known = [one.id for one in jobs]
        if not file or not name:
            raise UsageError(f"which job? {file or text}:NAME, with one of {', '.join(known)}")
        matches = [one for one in jobs if name in names_of(one)]
        if not matches:
            raise UsageError(f"{ledger.path.name} has no job {name}: {did_you_mean(name, known)}")
        job = matches[0]
    if fault := fault_of(job):
        raise UsageError(f"{ledger.path.name} line {job.line_number}: {fault}" if ledger else fault)
    return job, ledger


# --- arguments --------------------------------------------------------------------------------------------------------


def minutes(text: str) -> int:
    """An argparse type: Slurm's time limit in whole minutes, rounded up. Refuses `12:30`: Slurm reads it as MM:SS."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d)(?::(\d\d))?)?", text)
    if match is None or (match[1] is None and match[3] is not None and match[4] is None):
        raise argparse.ArgumentTypeError(f"{text!r}: expected minutes, HH:MM:SS or D-HH:MM:SS, e.g. 12:00:00")
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is None and match[3] is None:
        total = first
    else:
        total = (days * 24 + first) * 60 + second + (third > 0)
    if total < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least one minute")
    return total


def gigabytes(text: str) -> float:
    """An argparse type: memory with its unit (`64G`), in gigabytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([MGT])B?", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected memory with its unit, e.g. 64G")
    return float(match[1]) * {"M": 1 / 1024, "G": 1, "T": 1024}[match[2].upper()]


def meeting_point(text: str) -> str:
    """An argparse type: HOST or HOST:PORT, an IPv6 address in brackets."""
    match = re.fullmatch(r"(?:\[[\w:.%]+\]|[\w.-]+)(?::(\d+))?", text)
    if match is None or not 1 <= int(match[1] or PORT) <= 65535:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected HOST or HOST:PORT, e.g. node-0:{PORT} or [fd00::1]:{PORT}"
        )
    return text


def queue_name(text: str) -> str:
    """An argparse type: a name that is valid in Slurm, SkyPilot and file systems."""
    if as_name(text) != text:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected letters, digits, '.', '_', '-', from a letter to a letter or digit"
        )
    return text


def as_name(text: str) -> str:
    """`text` as such a name: invalid characters become dashes."""
    name = re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-._")
    return name if name[:1].isalpha() else f"job-{name}".rstrip("-")


def bucket(text: str) -> str:
    """An argparse type: the address of a bucket."""
    if not re.fullmatch(r"[a-z][a-z0-9]*://\S+", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected the address of a bucket, e.g. s3://my-runs")
    return text


# --- Slurm ------------------------------------------------------------------------------------------------------------


def slurm_parameters(spec: LaunchSpec) -> dict[str, Any]:
    """The job's parameters for submitit; `--slurm key=value` takes precedence.

    Raises: UsageError without a time limit, or with one that leaves no time before the warning.
    """
    own = spec.own
    if own["time"] is None and not {"timeout_min", "slurm_time"} & set(dict(own["slurm"])):
        raise UsageError("how long may the job run? Give --time HH:MM:SS; at its end the run saves and is queued again")
    line = slurm_node_line(spec)
    setup = [f"# on each of {spec.nodes} node(s): {line}"]
    grace = own["grace"] or GRACE_S
    if spec.distributed:
        setup.append(f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={grace}  # torchrun's own patience is 30 s")
    if spec.nodes > 1:  # srun exports these to every node
        setup += [
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))",
        ]
    parameters = {
        "nodes": spec.nodes,
        "tasks_per_node": 1,
        "cpus_per_task": spec.cpus,
        "mem_gb": spec.mem_gb,
        "timeout_min": own["time"],
        "slurm_partition": own["partition"],
        "slurm_account": own["account"],
        "slurm_qos": own["qos"],
        "slurm_signal_delay_s": grace,
        "slurm_setup": setup,
        "stderr_to_stdout": True,
    }
    parameters = {key: value for key, value in parameters.items() if value is not None} | dict(own["slurm"])
    limit, warning = parameters.get("timeout_min"), parameters["slurm_signal_delay_s"]
    if isinstance(limit, int) and isinstance(warning, int) and warning >= 60 * limit:
        raise UsageError(
            f"a limit of {60 * limit} s with a warning {warning} s ahead (--grace) leaves no time: raise --time"
        )
    return parameters


def slurm_node_line(spec: LaunchSpec) -> str:
    """The shell command of each node of a Slurm job."""
    variables = {"node_rank": '"$SLURM_NODEID"', "head": '"$MASTER_ADDR:$MASTER_PORT"'}
    return spec.node_line(shlex.quote(sys.executable), shlex.quote(str(LAUNCH)), variables, by_file=True)
