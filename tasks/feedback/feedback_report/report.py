"""Write the feedback report: find runs, look up their bases, compare cells, print and write the files."""

from __future__ import annotations

import argparse
from typing import Any

from PIL.Image import Image

from engine.errors import UsageError
from engine.io import print_rank0
from reports.output import prepare_folder, write_report
from reports.runs import Run, find_runs
from reports.study import compare, comparison_warnings, group
from tasks.feedback.feedback_report.pictures import pictures
from tasks.feedback.feedback_report.study import METRIC, FeedbackStudy, section, with_base
from tasks.feedback.feedback_report.tables import loss_table, report_text


def write_feedback_report(args: argparse.Namespace) -> None:
    """Report on the runs at `args.runs`, in the folder `args.out`. Raises: UsageError."""
    folder, study = args.out.absolute(), FeedbackStudy()
    found_runs, warnings = find_runs([place.absolute() for place in args.runs], METRIC, study)
    prepare_folder(folder)
    runs: list[Run] = []
    for run in found_runs:
        try:
            runs.append(with_base(run))
        except UsageError as error:
            warnings.append(f"left out: {error}")
    if not runs:
        raise UsageError(warnings[0])
    cells, doubles = group(runs, study)
    cells.sort(key=section)
    compared = compare(cells, METRIC, study)
    for heading in dict.fromkeys(map(section, cells)):
        warnings += comparison_warnings([cell for cell in cells if section(cell) == heading], study)
    text = report_text(cells, compared, [*warnings, *doubles])
    print_rank0(text)
    listed: dict[str, Any] = {
        cell.name: {**compared[cell.name], "runs": {seed: str(run.path) for seed, run in cell.runs.items()}}
        for cell in cells
    }
    files: dict[str, str | Image | dict[str, Any]] = {
        **pictures(cells, compared),
        "report.md": text,
        "scores.csv": loss_table(cells, compared).csv(),
        "report.json": {"metric": METRIC, "warnings": warnings, "cells": listed},
    }
    write_report(folder, files)
    print_rank0(f"written     {folder}: report.md, report.json, scores.csv and pictures")
