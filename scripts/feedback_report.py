"""What feedback is worth: runs of the feedback scripts by cell and seed, hypernetworks against static LoRAs.

    python scripts/feedback_report.py .out
    python scripts/feedback_report.py .out/gsm8k --out report

Runs, folders of runs and folders of sweeps (-m) are sorted into cells by what differs in their configs. Losses are
those of each run's last evaluation on the data's held-out split: with parameters and operations, after each pass, under
the deltas of other rows, and for cells that differ in one thing.
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


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="runs, folders of runs, folders of sweeps")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("feedback_report"),
        metavar="DIR",
        help="folder of the report; default: feedback_report",
    )
    args: argparse.Namespace = parser.parse_args(argv)
    return args


def main(args: argparse.Namespace) -> None:
    """Find, compare, print, write."""
    from tasks.feedback.feedback_report.report import write_feedback_report

    write_feedback_report(args)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
