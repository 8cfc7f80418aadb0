"""Time train.py's CPU recipe against a literal nanoGPT-style loop: batches, training steps, whole runs.

    python scripts/bench_language_model.py --data data/shakespeare_char                  # loading and steps: a minute
    python scripts/bench_language_model.py --data data/shakespeare_char --whole 2000     # whole runs too: ten minutes

Both sides are measured alternately (A B A B ...) because machines drift; printed are median, minimum and maximum of the
ratios of adjacent measurements. The baseline is tasks/language_model/nanogpt_baseline.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, run_command

if __name__ == "__main__":
    begin()

from dataset.arguments import positive, script_parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--data", type=Path, required=True, help="a data set of characters (65 of them or fewer)")
    parser.add_argument("--threads", type=positive, default=2, help="of torch, for both; default: 2")
    parser.add_argument("--pairs", type=positive, default=7, help="measurements of each; default: 7")
    parser.add_argument("--whole", type=positive, metavar="N", help="also whole runs of N iterations, three of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--baseline-run", type=positive, metavar="N", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure and print."""
    import torch

    from reports.output import write_json_result
    from tasks.language_model.benchmark import check_data, loading, stepping, whole

    folder = args.data.resolve()
    torch.set_num_threads(args.threads)
    if args.baseline_run:
        from tasks.language_model.nanogpt_baseline import train

        train(folder, args.baseline_run, eval_interval=250, eval_iters=200, log_interval=10, seed=1337)
        return
    check_data(folder)
    figures: dict[str, Any] = {}

    def show(name: str, row: dict[str, Any]) -> None:
        if not figures:
            print(f"{'':<14}{'ours ms':>12}{'baseline ms':>14}{'ratio':>8}   lowest to highest, pairs")
        figures[name] = row
        spread = f"{row['lowest']:.2f} to {row['highest']:.2f}, {row['pairs']}"
        print(
            f"{name:<14}{row['ours_ms']:>12.3f}{row['baseline_ms']:>14.3f}{row['ratio']:>8.2f}   {spread}", flush=True
        )

    for rows, length in ((12, 64), (64, 256)):
        show(f"batch {rows}x{length}", loading(folder, args.pairs, rows, length))
    show("step", stepping(folder, args.pairs))
    if args.whole:
        baseline = [__file__, "--data", str(folder), "--threads", str(args.threads), "--baseline-run", str(args.whole)]
        show("whole run", whole(folder, args.whole, args.threads, baseline))
    if args.json:
        write_json_result(args.json, {"threads": args.threads, "torch": torch.__version__, **figures})


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
