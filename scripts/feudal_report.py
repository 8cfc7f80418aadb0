"""What a manager is worth: runs of HRM with and without one, by cell and seed; are its goals followed, and of use?

    python scripts/feudal_report.py checkpoints/feudal
    python scripts/feudal_report.py checkpoints/feudal --metric accuracy --out report
    python scripts/feudal_report.py multirun/2026-11-21_09-00-00 --no-interventions

Runs, folders of runs and folders of sweeps (-m) are sorted into cells by what differs in their configs. Scores are
those of each run's final evaluation on held-out examples. Then every run with a head is evaluated again with its goals
as they are, taken away, exchanged between examples, random, held to the end and averaged; its folder remembers that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, run_command

if __name__ == "__main__":
    begin()

from dataset.arguments import OneLineParser
from engine.errors import UsageError
from engine.io import atomic_write_bytes, atomic_write_json, atomic_write_text, print_rank0
from scripts._feudal_runs import Cell, Run, baseline_of, find_runs, group, warnings_of
from scripts._feudal_stats import paired, summary

METRICS = ("exact_accuracy", "accuracy")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one exits 2."""
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = OneLineParser(
        prog="feudal_report.py", description=description, epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="runs, folders of runs, folders of sweeps")
    parser.add_argument(
        "--metric", choices=METRICS, default=METRICS[0], help="what cells are compared by; default: exact_accuracy"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("feudal_report"),
        metavar="DIR",
        help="folder of the report; default: feudal_report",
    )
    parser.add_argument("--no-interventions", action="store_true", help="compare the scores only; loads no model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: auto")
    return parser.parse_args(argv)


def compare(cells: Sequence[Cell], metric: str) -> dict[str, dict[str, Any]]:
    """For each cell its `seeds` (seed -> score), `score`, and `difference` from the baseline or None."""
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        values, base = cell.values(metric), baseline_of(cell, cells)
        gap = paired(values, base.values(metric)) if cell.has_head and base is not None else None
        found[cell.name] = {"seeds": values, "score": summary(list(values.values())), "difference": gap, "goals": None}
    return found


def add_goals(cells: Sequence[Cell], facts: Mapping[str, dict[str, Any]], metric: str, device: str) -> list[str]:
    """Measure the goals of every run with a head and put them into `facts`; returns warnings."""
    from scripts._feudal_goals import measure, of_cell

    runs: list[Run] = [run for cell in cells if cell.has_head for run in cell.runs.values()]
    measured, warnings = {}, []
    for number, run in enumerate(runs, start=1):
        print_rank0(f"goals of run {number} of {len(runs)}: {run.path}")
        try:
            measured[run.path] = measure(run, device)
        except UsageError as error:
            warnings.append(f"goals not measured: {error}")
    for cell in cells:
        if cell.has_head:
            facts[cell.name]["goals"] = of_cell(cell, measured, metric)
    return warnings


def main(args: argparse.Namespace) -> None:
    """Find, compare, measure, print, write."""
    from scripts._feudal_plots import pictures
    from scripts._feudal_tables import markdown

    metric, out = f"eval/{args.metric}", args.out.absolute()
    runs, warnings = find_runs([place.absolute() for place in args.runs], metric)
    cells, doubles = group(runs)
    warnings += doubles + warnings_of(cells, metric)
    facts = compare(cells, metric)
    if not args.no_interventions:
        warnings += add_goals(cells, facts, args.metric, args.device)
    text = markdown(cells, facts, args.metric, warnings)
    print_rank0(text)
    listed = {c.name: {**facts[c.name], "runs": {s: str(run.path) for s, run in c.runs.items()}} for c in cells}
    try:
        for name, picture in pictures(cells, facts, args.metric).items():
            atomic_write_bytes(out / name, _png(picture))
        atomic_write_text(out / "report.md", text)
        atomic_write_json(out / "report.json", {"metric": args.metric, "warnings": warnings, "cells": listed})
    except OSError as error:
        raise UsageError(f"{out} cannot be written ({error.strerror}): name another folder with --out") from None
    print_rank0(f"written     {out}: report.md, report.json and pictures")


def _png(picture: Any) -> bytes:
    import io

    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
