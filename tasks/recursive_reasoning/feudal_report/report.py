"""Write the feudal report: find runs, compare cells, measure goals, print and write the files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from engine.errors import UsageError
from engine.io import print_rank0
from reports.output import prepare_folder, write_report
from reports.runs import find_runs
from reports.study import Cell, compare, group
from tasks.recursive_reasoning.feudal_report.cell_goals import CellGoals, goals_of_cell
from tasks.recursive_reasoning.feudal_report.goals import measure
from tasks.recursive_reasoning.feudal_report.pictures import pictures
from tasks.recursive_reasoning.feudal_report.study import FeudalStudy, has_head, warnings_of
from tasks.recursive_reasoning.feudal_report.tables import report_text, score_table


def write_feudal_report(args: argparse.Namespace) -> None:
    """Print and write the report, for the arguments of scripts/feudal_report.py. Raises: UsageError."""
    if not args.no_interventions:
        from engine.device import choose_device

        choose_device(args.device)  # before the work: a wrong one would leave every run unmeasured
    metric, folder, study = f"eval/{args.metric}", args.out.absolute(), FeudalStudy()
    runs, warnings = find_runs([place.absolute() for place in args.runs], metric, study)
    prepare_folder(folder)
    cells, doubles = group(runs, study)
    warnings += doubles + warnings_of(cells, metric, study)
    compared = compare(cells, metric, study)
    goals: dict[str, CellGoals] = {}
    if not args.no_interventions:
        goals, unmeasured = measure_goals(cells, args.metric, args.device)
        warnings += unmeasured
    name = args.metric.replace("_", " ")
    scores = score_table(compared, name)
    text = report_text(scores, goals, name, warnings)
    print_rank0(text)
    listed: dict[str, Any] = {
        cell.name: {
            **compared[cell.name],
            "goals": goals.get(cell.name),
            "runs": {seed: str(run.path) for seed, run in cell.runs.items()},
        }
        for cell in cells
    }
    files: dict[str, str | Image | dict[str, Any]] = {
        **pictures(cells, compared, goals, name),
        "report.md": text,
        "scores.csv": scores.csv(),
        "report.json": {"metric": args.metric, "warnings": warnings, "cells": listed},
    }
    write_report(folder, files)
    print_rank0(f"written     {folder}: report.md, report.json, scores.csv and pictures")


def measure_goals(cells: Sequence[Cell], metric: str, device: str) -> tuple[dict[str, CellGoals], list[str]]:
    """(cell name -> goal measurements, for cells with a head; a warning for each run that could not be measured)."""
    runs = [run for cell in cells if has_head(cell.settings) for run in cell.runs.values()]
    measured: dict[Path, dict[str, dict[str, Any]]] = {}
    warnings = []
    for number, run in enumerate(runs, start=1):
        print_rank0(f"goals of run {number} of {len(runs)}: {run.path}")
        try:
            measured[run.path] = measure(run, device)
        except UsageError as error:
            warnings.append(f"goals not measured: {error}")
    goals = {cell.name: goals_of_cell(cell, measured, metric) for cell in cells if has_head(cell.settings)}
    return {name: each for name, each in goals.items() if each is not None}, warnings
