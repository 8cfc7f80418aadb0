"""The plan of a storm: which faults meet which attempt, and when. Drawn from a seed before anything runs."""

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
USUAL = ("kill", "stop", "term", "disk", "damage", "evaluation")
"""What any command of one process that trains can meet."""
GOES_ON = ("stop", "disk")
"""After these the process is still there."""


@dataclass(frozen=True)
class Fault:
    """One fault. It strikes in `rank`, at the first training step that is at least the share `at` of all steps (0: from
    the start of the process on), after `count` further events: file operations, or calls of modules in an evaluation.
    """

    kind: str
    at: float
    count: int
    rank: int = 0
    amount: float = 0.0
    """stop: seconds of the pause; disk: bytes that a file may have; queue: 1 where a job is killed, 0 the runner;
    damage: where in the file, as a share of its length"""
    file: float = 0.0
    """damage: which file of the checkpoint, as a share of their number"""
    cut: bool = False
    """damage: the file is cut short there, in place of one flipped bit; disk: from the beginning of the step on, with
    its metrics, in place of a save alone"""

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
    """The faults that one folder meets, in order; the same command follows each that ends the process."""

    faults: tuple[Fault, ...]


def plan(seed: int, count: int, kinds: Sequence[str], ranks: int = 1) -> list[Attempt]:
    """`count` faults in attempts of one to three; every kind nearly as often as any other. Same seed, same plan.

    Raises: UsageError for a kind that is none, or needs several ranks.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError(f"--kinds {unknown[0]}: {did_you_mean(unknown[0], KINDS)}")
    if "rank" in kinds and ranks < 2:
        raise UsageError("--kinds rank needs several: add --ranks 2")
    chance = random.Random(f"{seed}/{count}/{'/'.join(kinds)}/{ranks}")
    dealt = [kinds[number % len(kinds)] for number in range(count)]
    chance.shuffle(dealt)
    attempts = []
    while dealt:
        size = chance.choice((1, 2, 2, 3))
        attempts.append(Attempt(_in_order([_fault(chance, kind, ranks) for kind in dealt[:size]])))
        del dealt[:size]
    return attempts


def _in_order(faults: list[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: (fault.kind != "data", fault.at)))


def _fault(chance: random.Random, kind: str, ranks: int) -> Fault:
    at, count, rank, amount = round(chance.uniform(0.05, 0.95), 3), chance.randrange(45), chance.randrange(ranks), 0.0
    file, cut = round(chance.random(), 3), chance.random() < 0.5
    match kind:
        case "data":
            return Fault(kind, 0.0, chance.randrange(1, 30))
        case "kill" if chance.random() < 0.25:
            return Fault(kind, 0.0, chance.randrange(1, 60))
        case "stop":
            amount = round(chance.uniform(0.05, 0.2), 2)
        case "disk":
            at, count, rank, amount = chance.choice((at, at, 1.0)), 0, 0, float(chance.choice((0, 64, 700, 5000)))
        case "damage":
            at, amount = round(chance.uniform(0.4, 0.95), 3), round(chance.random(), 3)
        case "evaluation":
            count = chance.randrange(1, 12)
        case "queue":
            amount = float(chance.random() < 0.5)
            count = chance.randrange(45) if amount else chance.randrange(1, 25)
            at, rank = (at if amount else 0.0), 0
    if rank and kind != "evaluation":  # only the first rank has file operations
        count = 0
    return Fault(kind, at, count, rank, amount, file if kind == "damage" else 0.0, cut and kind in ("damage", "disk"))
