"""Report on an evaluation of a few-shot run: accuracy by way of answering, by task family and by search budget.

It reads the records that `arc@ARC` and the evaluators of docs/etrm.md write to a run's `evaluations/`.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import print_rank0, read_object
from evaluators.arc_controls import LABELS
from evaluators.intervals import wilson
from reports.output import prepare_folder, write_report
from reports.plots import Column as Place, draw_curve
from reports.tables import Column, Table

_RECORD = re.compile(r"step_(\d+)_(arc_.+)\.json")
_GENERATED = re.compile(r"(.+)_([ten])\d+")
"""Name of a generated task: its family, and the subset training, evaluation or novel."""
SEARCHES = {"search": "Latent search by gradient ascent", "random": "Latent search at random points"}
"""Prefix of a label -> title of its curve."""
_SEARCH = re.compile(rf"({'|'.join(SEARCHES)})_(\d+)")
OWN = "votes"
"""Label of `arc@ARC`, which has none."""


@dataclass(frozen=True)
class Way:
    """The results of one way of answering (plain votes, a control, a search) in one evaluation."""

    label: str
    protocol: str
    """Class and leakage: `i_clean`."""
    first: dict[str, float]
    """Task -> share of its tests that the first-ranked answer solves."""
    scores: dict[str, float | None]
    """Metric, without class and label -> value."""


def write_fewshot_report(args: argparse.Namespace) -> None:
    """Print and write the report, for the arguments of scripts/fewshot_report.py. Raises: UsageError."""
    step, ways = read_ways(args.run, args.step)
    prepare_folder(args.out)
    tables = {"ways": ways_table(ways), "families": families_table(ways)}
    title = f"{args.run}, step {step}"
    text = "\n\n".join([f"# {title}", *(table.markdown() for table in tables.values() if table.rows)]) + "\n"
    print_rank0(text)
    files: dict[str, Any] = {"report.md": text, **{f"{name}.csv": table.csv() for name, table in tables.items()}}
    for name, heading in SEARCHES.items():
        matches = [(match, way) for way in ways if (match := _SEARCH.fullmatch(way.label)) and match[1] == name]
        if len(matches) > 1:
            places = [Place(match[2], [way.scores["pass@1"] or 0.0]) for match, way in matches]
            count = f"pass@1 of {len(matches[0][1].first)} tasks"
            axis = "updates of the latent" if name == "search" else "points that are tried"
            files[f"{name}.png"] = draw_curve(heading, f"{count}, {title}", axis, places)
    write_report(args.out, files)
    print_rank0(f"written     {args.out}: {', '.join(files)}")


def read_ways(run: Path, step: int | None = None) -> tuple[int, list[Way]]:
    """(step, ways of answering) of the run's evaluation at `step`, None for the last one. Raises: UsageError."""
    if not run.is_dir():
        raise UsageError(f"{run} is not a folder: expected a run, e.g. checkpoints/PROJECT/RUN")
    records: dict[int, list[Path]] = defaultdict(list)
    for path in sorted((run / "evaluations").glob("step_*.json")):
        if match := _RECORD.fullmatch(path.name):
            records[int(match[1])].append(path)
    if not records:
        raise UsageError(f"{run}/evaluations has no records of arc@ARC: name a run that has been evaluated with it")
    chosen = max(records) if step is None else step
    if chosen not in records:
        raise UsageError(f"--step {step}: {run} has evaluations of the steps {', '.join(map(str, sorted(records)))}")
    contents = [(path, read_object(path)) for path in records[chosen]]
    ways = [_way(path, content) for path, content in contents if "scores" in content]
    if not ways:
        raise UsageError(f"{run}/evaluations has no scores of step {chosen}: evaluate the run again")
    return chosen, sorted(ways, key=lambda way: _order(way.label))


def _order(label: str) -> tuple[int, int, str]:
    """Sort key: plain answers, controls, searches by budget, test-time training."""
    if label in (OWN, *LABELS):
        return 0, (OWN, *LABELS).index(label), label
    match = _SEARCH.fullmatch(label)
    return (1 + [*SEARCHES].index(match[1]), int(match[2]), label) if match else (1 + len(SEARCHES), 0, label)


def _way(path: Path, content: dict[str, Any]) -> Way:
    try:
        names = [name.split("/") for name in content["scores"]]
        values = [None if value is None else float(value) for value in content["scores"].values()]
        scores = {parts[-1]: value for parts, value in zip(names, values, strict=True)}
        first = {}
        for task, entry in content["tasks"].items():
            hits = [test["rank"] == 1 for test in entry["test"]]
            first[task] = sum(hits) / len(hits)
        label = names[0][1] if len(names[0]) == 3 else OWN
        return Way(label, f"{content['protocol']}_{content['leakage']}", first, scores)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a record of arc@ARC: {error!r}") from None


def ways_table(ways: Sequence[Way]) -> Table:
    """A row for each way: protocol, pass@1 with its interval, pass@2, number of tasks."""
    number = [Column(heading, "number") for heading in ("pass@1", "low", "high", "pass@2")]
    table = Table([Column("way"), Column("protocol"), *number, Column("tasks", "number", digits=0)])
    for way in ways:
        values = [way.scores.get(name) for name in ("pass@1", "pass@1_low", "pass@1_high", "pass@2")]
        table.add(way.label, way.protocol, *values, len(way.first))
    return table


def families_table(ways: Sequence[Way]) -> Table:
    """A row for each family of generated tasks: number of tasks, and pass@1 of each way."""
    families: dict[tuple[str, str], list[str]] = defaultdict(list)
    for task in {task: None for way in ways for task in way.first}:
        if match := _GENERATED.fullmatch(task):
            families["held out" if match[2] == "n" else "trained on", match[1]].append(task)
    columns = [Column("family"), Column("which is"), Column("tasks", "number", digits=0)]
    table = Table([*columns, *(Column(way.label, "number", digits=2) for way in ways)])
    for (kind, family), tasks in sorted(families.items(), reverse=True):
        table.add(family, kind, len(tasks), *(_mean(way, tasks) for way in ways))
    for kind in ("trained on", "held out"):
        tasks = [task for (own, _), names in families.items() if own == kind for task in names]
        if tasks:
            table.add(f"all {kind}", kind, len(tasks), *(_mean(way, tasks) for way in ways))
            ends = [wilson(_mean(way, tasks) * len(tasks), len(tasks)) for way in ways]
            for name, place in (("low", 0), ("high", 1)):
                table.add(f"{name} end of the interval", kind, len(tasks), *(end[place] for end in ends))
    return table


def _mean(way: Way, tasks: Sequence[str]) -> float:
    """pass@1 over `tasks`; a task that was not evaluated counts as unsolved."""
    return sum(way.first.get(task, 0.0) for task in tasks) / len(tasks)
