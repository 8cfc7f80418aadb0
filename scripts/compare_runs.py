"""Compare runs on the terminal: their state, cells averaged over seeds, settings that differ, final metrics.

    python scripts/compare_runs.py checkpoints/demo
    python scripts/compare_runs.py checkpoints/demo/trm_0 checkpoints/demo/hrm_0 --metric accuracy
    python scripts/compare_runs.py multirun/2026-11-21_09-00-00 --csv > runs.csv

Takes runs, folders of runs, folders of sweeps (-m) and job files. Differences are to the first cell, or to --baseline,
paired by seed. scripts/report.py makes a page of them, with curves and pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, run_command

if __name__ == "__main__":
    begin(output_is_all=True)

from dataset.arguments import script_parser
from engine.registry import ROOT
from reports.overview.arguments import add_run_arguments


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    add_run_arguments(parser)
    parser.add_argument(
        "--csv", action="store_true", help="print the table of runs as CSV, at full precision, and no other"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Read, print."""
    from launcher.status import expand_places
    from reports.overview.collect import collect
    from reports.overview.tables import as_text, run_table

    places = expand_places(args.runs, roots=(Path(), ROOT), cwd=Path.cwd())
    overview = collect(places, metric=args.metric, baseline=args.baseline)
    print(run_table(overview).csv() if args.csv else as_text(overview), end="")


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
