"""Generate text with a model of train.py, of a feedback script, or of train_animal.py.

    python scripts/sample.py out/shakespeare                                  # one sample from a newline
    python scripts/sample.py out/shakespeare --prompt "ROMEO:" --max-new-tokens 300 --top-k 1 5 200
    python scripts/sample.py out/shakespeare --prompt FILE:start.txt --temperature 0.7 --min-p 0.05 --num-samples 3
    python scripts/sample.py diversity_model                                  # eight completions of the run's prompt

It uses the best checkpoint of a run (--checkpoint latest: the newest) and its averaged weights if there are any.
Several values of --top-k give one sample each; the same --seed gives the same text on every machine. A run of
train_animal.py is sampled as in training: its own prompt and length, temperature 1, all tokens.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, run_command

if __name__ == "__main__":
    begin(output_is_all=True)

from dataset.arguments import positive, script_parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("run", type=Path, help="a run directory, or one of its checkpoints")
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best (default), latest or step_N")
    parser.add_argument(
        "--prompt",
        "--start",
        nargs="+",
        help="text, or FILE:path; one for each stream of a multicontext model; default: a newline",
    )
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="length of a sample; default: 500")
    parser.add_argument("--num-samples", type=positive, metavar="N", help="samples for each --top-k; default: 1")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: the most likely token; default: 0.8")
    parser.add_argument(
        "--top-k",
        type=positive,
        nargs="+",
        metavar="K",
        help="draw from the K likeliest tokens; default: 200",
    )
    parser.add_argument("--min-p", type=float, metavar="P", help="only tokens of at least P x the best's probability")
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="steps in which masked text is filled in, per block"
    )
    parser.add_argument(
        "--feedback-every",
        type=positive,
        metavar="N",
        help="keep the deltas of a hypernetwork for N steps; default: the run's feedback_every",
    )
    parser.add_argument("--block-length", type=positive, metavar="N", help="fill blocks of N tokens from left to right")
    parser.add_argument("--dataset", metavar="NAME", help="which vocabulary, for a multidataset_wte model")
    parser.add_argument("--seed", type=int, default=1337, metavar="N", help="of the random draws; default: 1337")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged (if there are any) or raw")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: auto")
    args = parser.parse_args(argv)
    if args.temperature is not None and not 0 <= args.temperature < math.inf:
        parser.error(f"argument --temperature: {args.temperature} is not a finite number of at least 0")
    if args.min_p is not None and not 0 <= args.min_p <= 1:
        parser.error(f"argument --min-p: {args.min_p} is not between 0 and 1")
    return args


def main(args: argparse.Namespace) -> None:
    """Print the samples."""
    from engine.run.load_run import family_function
    from tasks.loading import pick_checkpoint

    family_function(pick_checkpoint(args.run, args.checkpoint), "sampling", "sample_run")(args)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
