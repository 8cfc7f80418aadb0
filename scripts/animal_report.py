"""Is fine-tuning worth more than a higher temperature? Compares runs of train_animal.py with their resampled base.

    python scripts/animal_report.py output/animal
    python scripts/animal_report.py output/recommended_0 output/tb_0 --out report

Each seed's base is sampled with 16 pairs of temperature and top-p, and measured with the clusters of the runs. The
table has the best of these points with at least 95 % sensible samples and at most 1 nat from the base; the plot has all
of them.
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
    parser.add_argument("--out", type=Path, default=Path("animal_report"), metavar="DIR", help="default: animal_report")
    parser.add_argument("--no-base", action="store_true", help="compare the runs only; loads no model")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Read, measure, print, write."""
    from tasks.animal.comparison import write_comparison

    write_comparison(args)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
