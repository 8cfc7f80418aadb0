"""Has a change altered the numbers? Compares the metrics of two runs step by step, without times.

    python scripts/compare_losses.py checkpoints/p/before checkpoints/p/after --assert-equal
    python scripts/compare_losses.py checkpoints/p/a checkpoints/p/b --metrics loss grad_norm --tolerance 1e-5
    python scripts/compare_losses.py tests/fixtures/losses/cfg_pretrain_sudoku_4x4.jsonl new.jsonl

A and B are runs, or files like their metrics.jsonl. With --assert-equal the exit code is 1 if anything differs,
including metrics or steps that only one of them has.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute

if __name__ == "__main__":
    begin(output_is_all=True)

from dataset.arguments import pattern, script_parser
from engine.errors import UsageError


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("first", type=Path, metavar="A", help="a run, or a file of lines")
    parser.add_argument("second", type=Path, metavar="B", help="another one")
    parser.add_argument("--assert-equal", action="store_true", help="exit code 1 if they differ")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, metavar="R", help="relative difference that counts as none; default: 0"
    )
    parser.add_argument(
        "--metrics",
        type=pattern,
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="what to compare; default: all",
    )
    args = parser.parse_args(argv)
    if not 0 <= args.tolerance < math.inf:
        parser.error(f"--tolerance {args.tolerance}: expected a number of at least 0")
    return args


def main(args: argparse.Namespace) -> int:
    """Compare and print; return the exit code."""
    from reports.losses import as_text, compare_losses, read_losses, require_metrics, same_file

    try:
        records = [read_losses(place) for place in (args.first, args.second)]
        require_metrics(*records, patterns=args.metrics)
        differences, compared = compare_losses(*records, tolerance=args.tolerance, patterns=args.metrics)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if same_file(args.first, args.second):
        print(f"warning: {args.first} and {args.second} are the same metrics, which always agree", file=sys.stderr)
    print(as_text(differences, compared, args.tolerance))
    return int(args.assert_equal and bool(differences))


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: main(arguments))
