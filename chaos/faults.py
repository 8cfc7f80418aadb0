"""The plan of a storm: which faults each attempt meets, and when. Drawn from a seed before anything runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import UsageError
from engine.io import did_you_mean

KINDS = {
    "kill": "SIGKILL at a training step, or at a file operation of it, of a save, of the start or of the end",
    "stop": "SIGSTOP, and SIGCONT a moment later",
    "term": "SIGTERM, as a machine that is taken away sends it: a checkpoint, and exit code 3",
    "disk": "no file of a step, or of a save, may grow beyond some bytes (RLIMIT_FSIZE), until the next training step",
    "damage": "SIGKILL, and a file of the newest checkpoint, its manifest included, is cut short or has a bit flipped",
    "evaluation": "SIGKILL in the middle of an evaluation",
    "data": "SIGKILL while the command builds its data set",
    "rank": "SIGKILL of one of several ranks",
    "queue": "SIGKILL of the runner of a job file, or of a job",
}
SINGLE_PROCESS = ("kill", "stop", "term", "disk", "damage", "evaluation")
"""Kinds for any training command of one process."""
SURVIVED = ("stop", "disk")
"""Kinds that do not end the process."""


@dataclass(frozen=True)
class Fault:
    """One fault. It strikes `rank`, `count` events (file operations, or module calls in an evaluation) after the first
    training step that is at least the share `at` of all steps (0: after the start of the process).
    """

    kind: str
    at: float
    count: int
    rank: int = 0
    amount: float = 0.0
    """stop: seconds of the pause; disk: the largest file size in bytes; queue: 1 kills a job, 0 the runner; damage:
    position in the file, as a share of its length"""
    file: float = 0.0
    """damage: which file of the checkpoint, as a share of their number"""
    cut: bool = False
    """damage: truncate the file there, instead of flipping a bit; disk: limit the whole step, including its metrics,
    instead of only a save"""

    def __str__(self) -> str:
        where = "from the start" if not self.at else f"from {self.at:.0%} of the steps on"
        what = "call(s) of modules in an evaluation" if self.kind == "evaluation" else "file operation(s)"
        detail = {
            "stop": f", {self.amount:.2f} s",
            "disk": f", {self.amount:.0f} bytes in {'a step' if self.cut else 'a save'}",
            "queue": f", {'a job' if self.amount else 'the runner'}",
            "damage": f", then {'cut' if self.cut else 'flip'} file {self.file:.2f} at {self.amount:.2f}",
            "rank": f", rank {self.rank}",
        }.get(self.kind, "")
        return f"{self.kind}: {where}, {self.count} {what} later{detail}"


@dataclass(frozen=True)
class Attempt:
    """The faults that one folder meets, in order; after each that ends the process, the same command runs again."""

    faults: tuple[Fault, ...]


def plan(seed: int, count: int, kinds: Sequence[str], ranks: int = 1) -> list[Attempt]:
    """`count` faults in attempts of one to three, all kinds about equally often. The same seed gives the same plan.

    Raises: UsageError for an unknown kind, or one that needs several ranks.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError(f"--kinds {unknown[0]}: {did_you_mean(unknown[0], KINDS)}")
    if "rank" in kinds and ranks < 2:
        raise UsageError("--kinds rank needs several: add --ranks 2")
    rng = random.Random(f"{seed}/{count}/{'/'.join(kinds)}/{ranks}")
    shuffled = [kinds[number % len(kinds)] for number in range(count)]
    rng.shuffle(shuffled)
    attempts = []
    while shuffled:
        size = rng.choice((1, 2, 2, 3))
        faults = [_fault(rng, kind, ranks) for kind in shuffled[:size]]
        attempts.append(Attempt(tuple(sorted(faults, key=lambda fault: (fault.kind != "data", fault.at)))))
        del shuffled[:size]
    return attempts


def _fault(rng: random.Random, kind: str, ranks: int) -> Fault:
    at, count, rank, amount = round(rng.uniform(0.05, 0.95), 3), rng.randrange(45), rng.randrange(ranks), 0.0
    file, cut = round(rng.random(), 3), rng.random() < 0.5
    match kind:
        case "data":
            return Fault(kind, 0.0, rng.randrange(1, 30))
        case "kill" if rng.random() < 0.25:
            return Fault(kind, 0.0, rng.randrange(1, 60))
        case "stop":
            amount = round(rng.uniform(0.05, 0.2), 2)
        case "disk":
            at, count, rank, amount = rng.choice((at, at, 1.0)), 0, 0, float(rng.choice((0, 64, 700, 5000)))
        case "damage":
            at, amount = round(rng.uniform(0.4, 0.95), 3), round(rng.random(), 3)
        case "evaluation":
            count = rng.randrange(1, 12)
        case "queue":
            amount = float(rng.random() < 0.5)
            count = rng.randrange(45) if amount else rng.randrange(1, 25)
            at, rank = (at if amount else 0.0), 0
    if rank and kind != "evaluation":  # only rank 0 has file operations
        count = 0
    return Fault(kind, at, count, rank, amount, file if kind == "damage" else 0.0, cut and kind in ("damage", "disk"))
