"""Command-line arguments of the commands that compare runs."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the runs, the metric and the baseline."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="runs, folders of runs, folders of sweeps, job files"
    )
    parser.add_argument("--metric", help="what cells are compared by; default: what most runs report at their end")
    parser.add_argument(
        "--baseline", metavar="RUN", help="run or cell that others are compared with; default: the first"
    )
