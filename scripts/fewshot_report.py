"""What has a few-shot run learned? Its evaluation by answering method, family of tasks and search steps.

    python scripts/fewshot_report.py checkpoints/pretrain_etrm/RUN
    python scripts/fewshot_report.py checkpoints/pretrain_etrm/RUN --step 3000 --out report
    python scripts/fewshot_report.py checkpoints/etrm-overfit --encoders

It reads the files that arc@ARC, arc_controls@ARCControls, arc_search@ARCLatentSearch and arc_adapt@ARCTestTimeTraining
wrote to the run's evaluations/, and writes tables (Markdown, CSV) and, for a search with several budgets, a curve. With
--encoders it compares the training results and sizes of all runs in a folder.
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

from dataset.arguments import positive, script_parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("run", type=Path, help="a run directory, with --encoders a folder of them")
    parser.add_argument("--encoders", action="store_true", help="compare the training of all runs in the folder")
    parser.add_argument("--step", type=positive, metavar="N", help="of the evaluation; default: the last one")
    parser.add_argument(
        "--out", type=Path, default=Path("fewshot_report"), metavar="DIR", help="folder; default: fewshot_report"
    )
    args = parser.parse_args(argv)
    if args.encoders and args.step:
        parser.error("--step has no meaning with --encoders, which compares the last figures of training")
    return args


def main(args: argparse.Namespace) -> None:
    """Write the report."""
    if args.encoders:
        from tasks.etrm.encoder_report import write_encoder_report

        return write_encoder_report(args)
    from tasks.etrm.report import write_fewshot_report

    return write_fewshot_report(args)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
