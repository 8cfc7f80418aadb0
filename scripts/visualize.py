"""Draw how a model's answer changes over its ACT steps: as text, picture, animation or page, or step by step.

    python scripts/visualize.py checkpoints/demo/sudoku_4x4                      # text, and a PNG in the run
    python scripts/visualize.py checkpoints/demo/sudoku_4x4 --out thinking.html  # one page with a step slider
    python scripts/visualize.py checkpoints/demo/sudoku_4x4 --out thinking.gif --example 7 --steps 32
    python scripts/visualize.py checkpoints/demo/sudoku_4x4 --terminal           # step through with the arrow keys
    python scripts/visualize.py RUN/evaluations/step_500_arc_tasks.json --out gallery.html   # tasks, solved or not

Without --example some of the split are tried; those that took the model longest are drawn, and an unsolved one.
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
from engine.io import print_rank0
from tasks.loading import add_run_arguments, run_options
from viewer.examples import MAX_CANDIDATES, layout_of_run, make_headline, open_puzzle_run, select_examples
from viewer.output import (
    DEFAULT_COUNTS,
    SUFFIXES,
    check_count,
    check_target,
    default_file,
    draw_record,
    write,
)
from viewer.terminal import make_console

PRINTED = 8
"""Boards of more examples than this are printed nowhere but in the file that was asked for."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    add_run_arguments(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--example", type=int, metavar="N", help="draw this one example of the split, counted from 0")
    which.add_argument(
        "--examples",
        type=positive,
        metavar="N",
        help=f"how many to draw; default: {DEFAULT_COUNTS['.png']}, on a page {DEFAULT_COUNTS['.html']}",
    )
    parser.add_argument(
        "--among",
        type=positive,
        metavar="N",
        help=f"choose interesting ones from N spread over the split; default: {MAX_CANDIDATES}, fewer for large models "
        "on a CPU",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="FILE.png, FILE.gif or FILE.html; default: thinking_step_N.png in the run, none with --terminal",
    )
    parser.add_argument(
        "--terminal",
        action="store_true",
        help="step through the answers with the arrow keys; prints them all if the input is not a terminal",
    )
    parser.add_argument("--no-color", action="store_true", help="plain text with marks instead of colours")
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix.lower() not in SUFFIXES:
        parser.error(f"--out {args.out}: expected a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return args


def main(args: argparse.Namespace) -> None:
    """Run the model and print, step through or draw its answers; or draw the tasks of a stored evaluation."""
    if args.checkpoint.suffix == ".json":
        draw_record(args)
        return
    from viewer.stepper import step_through
    from viewer.terminal import draw

    named = None if args.out is None else args.out.absolute()
    run = open_puzzle_run(args.checkpoint, **run_options(args))
    layout = layout_of_run(run)
    target = named or (None if args.terminal else default_file(run, args))
    suffix = ".png" if target is None else target.suffix.lower()
    count = args.examples or (1 if args.example is not None else DEFAULT_COUNTS[suffix])
    if target is not None:
        check_target(target)
        check_count(count, suffix, layout, run.steps)
    chosen = select_examples(run, count, example=args.example, among=args.among)
    headline = make_headline(run, chosen)

    console = make_console(args.no_color)
    if args.terminal and sys.stdin.isatty() and sys.stdout.isatty():
        step_through(console, chosen.trajectories, headline)
    else:
        console.print(headline.title, markup=False)
        console.print(headline.subtitle, markup=False)
        if args.terminal or len(chosen.trajectories) <= PRINTED:
            draw(console, chosen.trajectories)
    if target is not None:
        print_rank0(write(target, chosen.trajectories, headline))


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
