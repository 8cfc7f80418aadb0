"""The results of a sweep: a record of each finished job, and the tables at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from engine.io import atomic_write_json, atomic_write_text, print_rank0
from engine.run.files import read_json
from launcher.naming import parse_overrides, value_text
from launcher.outcome import CODES
from launcher.table import csv_text, markdown, print_table, short_path

STATES = {code: state for state, code in CODES.items()}


@dataclass(kw_only=True)
class JobResult:
    """One finished job of a sweep, as in results.json."""

    number: int
    overrides: list[str]
    """As Hydra passes them, swept and fixed ones."""
    code: int
    seconds: float
    sweep_dir: str
    """multirun/<time>: the folder of the table."""
    run_dir: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    """summary.json of a completed run: name, value and direction of its metric, step, seconds."""
    step: int | None = None
    error: str = ""
    """The run's message on why it ended."""

    @property
    def state(self) -> str:
        return STATES.get(self.code, "failed")

    @property
    def metric(self) -> float | None:
        """The value that a sweeper optimizes: the primary metric of a completed run."""
        return self.summary.get("value")

    @property
    def cost(self) -> float:
        """The metric, negated if higher is better; infinite if there is none."""
        sign = -1.0 if self.summary.get("goal") == "max" else 1.0
        return float("inf") if self.metric is None else sign * self.metric

    @property
    def settings(self) -> dict[str, str]:
        """Key -> value, as text, of the overrides."""
        return {override.key_or_group: value_text(override) for override in parse_overrides(self.overrides)}

    def write(self, folder: Path) -> None:
        """Write the record, for the sweep to read."""
        atomic_write_json(folder / f"{self.number}.json", asdict(self))


def read_results(folder: Path) -> list[JobResult]:
    """The records of all finished jobs, by number."""
    return sorted((JobResult(**read_json(path)) for path in folder.glob("*.json")), key=lambda job: job.number)


def table(jobs: Sequence[JobResult]) -> tuple[list[str], list[list[str]]]:
    """(head, rows): the keys that vary, state, metric, steps, seconds, run directory; the best run first."""
    varied = _varied([job.settings for job in jobs])
    metric = next((str(job.summary["name"]) for job in jobs if job.summary.get("name")), None)
    head = ["job", *varied, "state", *([metric] if metric else []), "steps", "seconds", "run directory"]
    rows = []
    for job in sorted(jobs, key=lambda job: (job.cost, job.number)):
        settings = job.settings
        rows.append(
            [str(job.number), *(settings.get(key, "") for key in varied), job.state]
            + [_number(job.metric)] * bool(metric)
            + [_number(job.step), _number(job.summary.get("seconds", job.seconds), 1), short_path(job.run_dir)]
        )
    return head, rows


def over_seeds(jobs: Sequence[JobResult]) -> tuple[list[str], list[list[str]]] | None:
    """(head, rows) with jobs that differ only in their seed combined, the best mean first.

    The spread is the sample standard deviation. None if no two completed jobs differ only in their seed.
    """
    done = [job for job in jobs if job.metric is not None]
    varied = [key for key in _varied([job.settings for job in done]) if key != "seed"]
    cells: dict[tuple[str, ...], dict[str, JobResult]] = {}
    for job in done:
        settings = job.settings
        if "seed" in settings:
            cells.setdefault(tuple(settings.get(key, "") for key in varied), {})[settings["seed"]] = job
    if not any(len(cell) > 1 for cell in cells.values()):
        return None
    rows = []
    for values, cell in sorted(cells.items(), key=lambda item: mean(job.cost for job in item[1].values())):
        scores = [job.metric or 0.0 for job in cell.values()]
        spread = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
        rows.append(
            [*values, f"{mean(scores):.4f}{spread}", f"{min(scores):.4f}", f"{max(scores):.4f}", str(len(scores))]
        )
    return [*varied, f"{done[0].summary['name']} mean ± sd", "lowest", "highest", "seeds"], rows


def _varied(settings: Sequence[dict[str, str]]) -> list[str]:
    """The keys whose values differ, in order of appearance."""
    names = dict.fromkeys(key for values in settings for key in values)
    return [key for key in names if len({values.get(key) for values in settings}) > 1]


def _number(value: float | int | None, digits: int = 4) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def publish(jobs: Sequence[JobResult], *, complete: bool = True) -> None:
    """Print the table of a sweep and its failures; write results.csv, results.md and results.json into its folder.

    `complete`: the sweep was not stopped, so no job is missing.
    """
    tables = [table(jobs), *filter(None, [over_seeds(jobs)])]
    note = _stand_ins(jobs)
    where = _write(tables, jobs, Path(jobs[0].sweep_dir), note)
    for head, rows in tables:
        print_table(head, rows)
    if note:
        print_rank0(note)
    states = Counter(job.state for job in jobs)
    print_rank0(f"{len(jobs)} jobs: " + ", ".join(f"{count} {state}" for state, count in states.items()) + where)
    for job in jobs:
        if job.code:
            reason = f": {job.error}" if job.error else ""
            place = f" ({short_path(job.run_dir)})" if job.run_dir else ""
            print_rank0(f"job {job.number} {job.state}, exit code {job.code}{reason}{place}")
    for place, numbers in _shared(jobs).items():
        print_rank0(f"warning: jobs {', '.join(numbers)} have the same settings: one run ({short_path(place)})")
    if not complete or any(job.code for job in jobs):
        print_rank0("the same command again keeps what is done and resumes the rest")


def _shared(jobs: Sequence[JobResult]) -> dict[str, list[str]]:
    """Run directory -> the numbers of its jobs, where there are several: a value was given twice."""
    numbers: dict[str, list[str]] = {}
    for job in jobs:
        if job.run_dir:
            numbers.setdefault(job.run_dir, []).append(str(job.number))
    return {place: which for place, which in numbers.items() if len(which) > 1}


def _stand_ins(jobs: Sequence[JobResult]) -> str:
    """The line on jobs that ran on stand-in data; empty if there are none."""
    numbers = [str(job.number) for job in jobs if job.summary.get("stand_in") is True]
    which = "all jobs" if len(numbers) == len(jobs) else f"job{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
    return f"STAND-IN DATA (stand_in: true): {which}; figures are not comparable" if numbers else ""


def _write(tables: list[tuple[list[str], list[list[str]]]], jobs: Sequence[JobResult], folder: Path, note: str) -> str:
    """Write the files, with `note` below the tables; return the end of a line that names them."""
    place = short_path(folder.resolve())
    try:
        for name, (head, rows) in zip(("results.csv", "results_over_seeds.csv"), tables, strict=False):
            atomic_write_text(folder / name, csv_text(head, rows))
        below = f"\n{note}\n" if note else ""
        atomic_write_text(folder / "results.md", "\n".join(markdown(*one) for one in tables) + below)
        atomic_write_json(folder / "results.json", [asdict(job) | {"state": job.state} for job in jobs])
        where = f"; table in {place}/results.csv, .md and .json"
    except OSError as error:  # the sweep itself is complete: its runs are on disk
        where = f"; the table could not be written to {folder} ({error.strerror})"
    printed = f"; output of the jobs in {place}/.submitit" if (folder / ".submitit").is_dir() else ""
    return where + printed
