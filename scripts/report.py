"""Compare runs on one self-contained HTML page, which opens from disk.

    python scripts/report.py checkpoints/demo
    python scripts/report.py checkpoints/demo/trm_0 checkpoints/demo/hrm_0 --metric accuracy --out trm_hrm.html
    python scripts/report.py multirun/2026-11-21_09-00-00 --curves train/loss 'eval/.*accuracy'
    python scripts/report.py jobs-trm.txt

Takes runs, folders of runs, folders of sweeps (-m) and job files; shows curves, settings that differ, speed, samples
and pictures of thinking, data cards, verification, and cells compared over seeds. Unfinished runs are shown up to their
current step. Pictures in a run are shown; for a recursive model without any, they are drawn on the CPU.
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

from dataset.arguments import pattern, script_parser
from engine.registry import ROOT
from reports.overview.arguments import add_run_arguments


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    add_run_arguments(parser)
    parser.add_argument(
        "--curves",
        type=pattern,
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="metrics to draw; default: usual",
    )
    parser.add_argument(
        "--smoothing", type=float, default=0.6, metavar="W", help="weight of the past, from 0 to below 1; default: 0.6"
    )
    parser.add_argument("--no-verification", action="store_true", help="leave out verify_path, a second for each run")
    parser.add_argument("--no-pictures", action="store_true", help="leave out pictures and draw none")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    args = parser.parse_args(argv)
    if not 0 <= args.smoothing < 1:
        parser.error(f"--smoothing {args.smoothing}: expected a number from 0 to below 1")
    return args


def main(args: argparse.Namespace) -> None:
    """Write the page."""
    from launcher.status import expand_places
    from reports.output import check_own, write_page
    from reports.overview.collect import collect
    from reports.overview.page import MARK, report_page
    from verification.static import run_verdict
    from viewer.run_pictures import draw_missing

    check_own(args.out, MARK.encode(), "report of report.py", example="report.html")
    places = expand_places(args.runs, roots=(Path(), ROOT), cwd=Path.cwd())
    overview = collect(places, metric=args.metric, baseline=args.baseline)
    verdicts = None if args.no_verification else {run.path: run_verdict(run.path) for run in overview.runs}
    drawings, notes = ({}, []) if args.no_pictures else draw_missing(overview.runs)
    page = report_page(
        overview,
        metrics=args.curves,
        smoothing=args.smoothing,
        verdicts=verdicts,
        pictures=not args.no_pictures,
        drawings=drawings,
        notes=notes,
        place=args.out.absolute().parent,
    )
    write_page(args.out, page)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
