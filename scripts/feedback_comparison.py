"""Train the small comparison of docs/results/feedback.md and report on it: about 30 CPU minutes.

    python scripts/feedback_comparison.py                      # three seeds, one run after the other
    python scripts/feedback_comparison.py --seeds 1 --jobs 2
    python scripts/feedback_comparison.py --base-steps 5000 --steps 2000 --out .out/longer

Trains the bases, then the adapters on them, from two job files in the comparison's folder (scripts/run_jobs.py can show
and run them, too). After a stop the same command continues. Data that are not in data/ are replaced by stand-ins.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute

if __name__ == "__main__":
    begin(run=True)

from dataset.arguments import positive, script_parser
from engine.errors import UsageError
from launcher.ledger import Ledger
from launcher.queue import Options
from launcher.runner import run_jobs
from reports.output import prepare_folder
from tasks.feedback.feedback_report.plan import Sizes, write_plan


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    sizes = Sizes()
    parser = script_parser(__file__, __doc__)
    add = parser.add_argument
    add("--seeds", type=positive, default=3, metavar="N", help="1 to N; default: 3")
    add("--base-steps", type=positive, default=sizes.base, metavar="N", help=f"of a base; default: {sizes.base}")
    add("--steps", type=positive, default=sizes.adapter, metavar="N", help=f"on a base; default: {sizes.adapter}")
    add("--jobs", type=positive, default=1, metavar="N", help="runs at once; default: 1")
    add("--out", type=Path, default=Path(".out/comparison"), metavar="DIR", help="default: .out/comparison")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 a run failed, 2 unusable, 3 stopped by a signal."""
    args = parse(argv)
    try:
        prepare_folder(args.out)
        for path in write_plan(args.out, args.seeds, Sizes(args.base_steps, args.steps)):
            if code := run_jobs(
                Ledger(path), Options(cwd=Path.cwd(), logs=args.out / "logs", jobs=args.jobs, failed=True)
            ):
                return code
        from tasks.feedback.feedback_report.report import write_feedback_report

        write_feedback_report(argparse.Namespace(runs=[args.out], out=args.out / "report"))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    execute(main)
