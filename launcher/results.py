"""What the jobs of a sweep tell each other through one folder, and the table at the end.

multirun/.sweep-HOST-PID/    named in the environment, so that it works with any launcher, on a shared disk too
    3.json              written by the process that waits for job 3: its overrides, exit code, seconds
    3.run               written by the run itself: its run directory
    stop                written by the sweep when it is signalled: running jobs stop, others do not start
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from engine.io import atomic_write_json, atomic_write_text, print_rank0
from engine.run.files import read_json

NAME = "LOOPFORGE_SWEEP_NAME"
"""Environment: multirun/<this> is the sweep's own folder; config/base/run.yaml reads it."""
STATES = {0: "done", 2: "refused", 3: "interrupted"}
STOP = "stop"


@dataclass(kw_only=True)
class Job:
    """One finished job of a sweep."""

    number: int
    overrides: list[str]
    """As Hydra gave them, swept and fixed ones."""
    code: int
    seconds: float
    sweep_dir: str
    """multirun/<time>: where the table goes."""
    run_dir: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    """summary.json of a run that is done: name, value and direction of its metric, step, seconds."""
    step: int | None = None
    error: str = ""
    """Why the run ended, in its own words."""

    @property
    def state(self) -> str:
        return STATES.get(self.code, "failed")

    @property
    def metric(self) -> float | None:
        """What a sweeper optimizes: the primary metric of a run that is done."""
        return self.summary.get("value")

    def write(self, folder: Path) -> None:
        """Leave the record for the sweep."""
        atomic_write_json(folder / f"{self.number}.json", asdict(self))


def result_of(run_file: Path) -> dict[str, Any]:
    """run_dir, summary, step and error of the run that wrote `run_file`; the summary is empty unless it is done."""
    if not run_file.exists():
        return {}
    run_dir = Path(run_file.read_text(encoding="utf-8"))
    status = read_json(run_dir / "status.json")
    summary = read_json(run_dir / "summary.json") if status.get("state") == "done" else {}
    step = summary.get("step", status.get("step"))
    return {"run_dir": str(run_dir), "summary": summary, "step": step, "error": status.get("message") or ""}


def read_jobs(folder: Path) -> list[Job]:
    """The records of all jobs that ended, by number."""
    return sorted((Job(**read_json(path)) for path in folder.glob("*.json")), key=lambda job: job.number)


# --- the table --------------------------------------------------------------------------------------------------------


def table(jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """(head, rows): the keys that vary, state, metric, steps, seconds, run directory; the best run first."""
    settings = [_settings(job) for job in jobs]
    names = dict.fromkeys(key for values in settings for key in values)
    varied = [key for key in names if len({values.get(key) for values in settings}) > 1]
    metric = next((str(job.summary["name"]) for job in jobs if job.summary.get("name")), None)
    head = ["job", *varied, "state", *([metric] if metric else []), "steps", "seconds", "run directory"]
    order = sorted(range(len(jobs)), key=lambda i: _rank(jobs[i]))
    return head, [
        [
            str(jobs[i].number),
            *(settings[i].get(key, "") for key in varied),
            jobs[i].state,
            *([_number(jobs[i].metric)] if metric else []),
            _number(jobs[i].step),
            _number(jobs[i].summary.get("seconds", jobs[i].seconds), 1),
            _short(jobs[i].run_dir),
        ]
        for i in order
    ]


def over_seeds(jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]] | None:
    """(head, rows) of the jobs that differ in nothing but their seed taken together, the best mean first.

    The spread is the sample standard deviation. None where no two jobs that are done differ in their seed alone.
    """
    done = [job for job in jobs if job.metric is not None]
    settings = [_settings(job) for job in done]
    names = dict.fromkeys(key for values in settings for key in values if key != "seed")
    varied = [key for key in names if len({values.get(key) for values in settings}) > 1]
    groups: dict[tuple[str, ...], dict[str, float]] = {}
    for job, values in zip(done, settings, strict=True):
        group = groups.setdefault(tuple(values.get(key, "") for key in varied), {})
        if "seed" in values:
            group[values["seed"]] = job.metric or 0.0
    if not any(len(group) > 1 for group in groups.values()):
        return None
    sign = -1.0 if done[0].summary.get("goal") == "max" else 1.0
    order = sorted((item for item in groups.items() if item[1]), key=lambda item: sign * mean(item[1].values()))
    head = [*varied, f"{done[0].summary['name']} mean ± sd", "lowest", "highest", "seeds"]
    return head, [[*values, *_spread([*found.values()])] for values, found in order]


def _spread(values: list[float]) -> list[str]:
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return [f"{mean(values):.4f}{spread}", f"{min(values):.4f}", f"{max(values):.4f}", str(len(values))]


def _settings(job: Job) -> dict[str, str]:
    parsed = OverridesParser.create().parse_overrides(job.overrides)
    return {override.key_or_group: str(override.input_line).partition("=")[2] for override in parsed}


def _rank(job: Job) -> tuple[bool, float, int]:
    value = job.metric
    sign = -1.0 if job.summary.get("goal") == "max" else 1.0
    return value is None, 0.0 if value is None else sign * value, job.number


def _number(value: float | int | None, digits: int = 4) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def _short(path: str | None) -> str:
    return "" if path is None else os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def publish(jobs: Sequence[Job], *, complete: bool = True) -> None:
    """Print the table of a sweep and what failed; results.csv, results.md and results.json go into its folder.

    `complete`: no job is missing because the sweep was stopped.
    """
    head, rows = table(jobs)
    seeds = over_seeds(jobs)
    folder = Path(jobs[0].sweep_dir)
    try:
        atomic_write_text(folder / "results.csv", _csv(head, rows))
        if seeds is not None:
            atomic_write_text(folder / "results_over_seeds.csv", _csv(*seeds))
        atomic_write_text(folder / "results.md", "\n".join(_markdown(*part) for part in ((head, rows), seeds) if part))
        atomic_write_json(folder / "results.json", [asdict(job) | {"state": job.state} for job in jobs])
        where = f"; table in {_short(str(folder.resolve()))}/results.csv, .md and .json"
    except OSError as error:  # the sweep itself is done: its runs are on disk
        where = f"; the table could not be written to {folder} ({error.strerror})"
    if (folder / ".submitit").is_dir():
        where += f"; what the jobs printed in {_short(str(folder.resolve()))}/.submitit"
    _print(head, rows)
    if seeds is not None:
        _print(*seeds)
    states = Counter(job.state for job in jobs)
    print_rank0(f"{len(jobs)} jobs: " + ", ".join(f"{count} {state}" for state, count in states.items()) + where)
    for job in jobs:
        if job.code:
            why, place = (f": {job.error}" if job.error else ""), (f" ({_short(job.run_dir)})" if job.run_dir else "")
            print_rank0(f"job {job.number} {job.state}, exit code {job.code}{why}{place}")
    if not complete or any(job.code for job in jobs):
        print_rank0("the same command again keeps what is done and goes on with the rest")


def _csv(head: list[str], rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _print(head: list[str], rows: list[list[str]]) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        pretty = Table(*head)
        for row in rows:
            pretty.add_row(*row, style="" if "done" in row or "state" not in head else "yellow")
        Console().print(pretty)
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print_rank0("")
    for row in (head, *rows):
        print_rank0("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
