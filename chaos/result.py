"""The results of a storm: a table by kind of fault, and everything as JSON."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.faults import Attempt
from chaos.storm import Command, Report, Storm
from engine.io import print_rank0
from engine.run.environment import describe_environment
from reports.tables import Column, Table


@dataclass
class Clock:
    """Wall-clock and CPU seconds, including those of children."""

    started: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), _cpu_s()))

    def read(self) -> dict[str, float]:
        wall, cpu = self.started
        return {"wall_s": round(time.monotonic() - wall, 1), "cpu_s": round(_cpu_s() - cpu, 1)}


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(command: Command, attempts: Sequence[Attempt], seed: int, begin: Path | None = None) -> dict[str, Any]:
    """Run a storm in a temporary folder, printing each problem; return `as_json` of it.

    Raises: UsageError, RunFailure, as `Storm.undisturbed`.
    """
    clock, reports = Clock(), []
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        for report in Storm(command, Path(folder), begin).run(attempts):
            reports.append(report)
            for problem in report.problems:
                print_rank0(f"attempt {report.number}, {'; '.join(map(str, report.faults))}: {problem}")
    return as_json(command, seed, reports, clock)


def as_json(command: Command, seed: int, reports: Sequence[Report], clock: Clock) -> dict[str, Any]:
    """The command, its environment and all reports, as JSON values."""
    environment = describe_environment(argv=["python", command.script, *command.words])
    git = environment["git"] or {}
    return {
        "command": environment["command"],
        "ranks": command.ranks,
        "seed": seed,
        "commit": git.get("commit"),
        "changed": bool(git.get("diff")),
        **{key: environment[key] for key in ("time", "python", "torch", "platform", "cpu_count")},
        **clock.read(),
        "launches": sum(report.launches for report in reports),
        "kinds": by_kind(reports),
        "attempts": [json.loads(json.dumps(report, default=vars)) for report in reports],
    }


def by_kind(reports: Sequence[Report]) -> dict[str, dict[str, int]]:
    """For each kind: faults planned, faults that struck, and those in an attempt that ended differently."""
    counts: dict[str, dict[str, int]] = {}
    for report in reports:
        for fault, struck in zip(report.faults, report.struck, strict=True):
            row = counts.setdefault(fault.kind, {"planned": 0, "struck": 0, "lost": 0})
            row["planned"] += 1
            row["struck"] += struck
            row["lost"] += bool(struck and report.problems)
    return dict(sorted(counts.items()))


def as_table(result: Mapping[str, Any]) -> str:
    """The table by kind, and a line of totals."""
    table = Table([*map(Column, ("fault", "planned", "came to pass", "ended otherwise"))])
    rows = [(kind, *row.values()) for kind, row in result["kinds"].items()]
    for row in [*rows, ("all", *(sum(each[n] for each in rows) for n in (1, 2, 3)))]:
        table.add(*row)
    attempts, spent = len(result["attempts"]), f"{result['cpu_s']:.0f} CPU seconds, {result['wall_s']:.0f} s"
    return f"{table.markdown()}\n{attempts} attempts, {result['launches']} launches, {spent}"
