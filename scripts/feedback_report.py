"""What is feedback worth? Compares runs of the feedback scripts by cell and seed, hypernetworks with static LoRAs.

    python scripts/feedback_report.py .out
    python scripts/feedback_report.py .out/gsm8k --out report

Runs, folders of runs and folders of sweeps (-m) are grouped into cells by the differences of their configs. Losses are
from each run's last evaluation on the held-out split: with parameters and FLOPs, after each pass, with the deltas of
other rows, and for cells that differ in one setting.
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
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="runs, folders of runs, folders of sweeps")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("feedback_report"),
        metavar="DIR",
        help="folder of the report; default: feedback_report",
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the report."""
    from tasks.feedback.feedback_report.report import write_feedback_report

    write_feedback_report(args)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
