"""What is a manager worth? Compares runs of HRM with and without one, by cell and seed; are its goals used?

    python scripts/feudal_report.py checkpoints/feudal
    python scripts/feudal_report.py checkpoints/feudal --metric accuracy --out report
    python scripts/feudal_report.py multirun/2026-11-21_09-00-00 --no-interventions

Runs, folders of runs and folders of sweeps (-m) are grouped into cells by the differences of their configs. Scores are
from each run's final evaluation on held-out examples. Then every run with a head is evaluated again with its goals
unchanged, removed, swapped between examples, random, frozen and averaged; the results are cached in its folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, run_command

if __name__ == "__main__":
    begin()

from dataset.arguments import script_parser

METRICS = ("exact_accuracy", "accuracy")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
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


def main(args: argparse.Namespace) -> None:
    """Write the report."""
    from tasks.recursive_reasoning.feudal_report.report import write_feudal_report

    write_feudal_report(args)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
