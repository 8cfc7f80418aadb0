"""Draw how a model's answer changes over its ACT steps, on the terminal and as a PNG.

    python scripts/visualize.py checkpoints/demo/sudoku_4x4                      # the four most interesting of some
    python scripts/visualize.py checkpoints/demo/sudoku_4x4 --example 7 --steps 32
    python scripts/visualize.py checkpoints/demo/sudoku_4x4 --examples 6 --out thinking.png

Without --example it looks at some of the split and draws those that took the model longest, and one it did not solve.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from dataset.format import PuzzleSplit
from engine.errors import UsageError
from engine.io import atomic_write_bytes, progress, say
from scripts._boards import Thought, layout_of, most_interesting
from scripts._opening import OneLineParser, Subject, add_common_arguments, open_subject, positive, run_command

BATCH = 64
AMONG = 256
CPU_WORK = 4e12
"""Floating-point operations that looking for interesting examples may cost on a CPU: some ten seconds to a minute."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one exits 2."""
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = OneLineParser(
        prog="visualize.py", description=description, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--example", type=int, metavar="N", help="draw this one example of the split, counted from 0")
    which.add_argument("--examples", type=positive, default=4, metavar="N", help="how many to draw; default: 4")
    parser.add_argument(
        "--among", type=positive, metavar="N",
        help=f"choose interesting ones from N spread over the split; default: {AMONG}, fewer for large models on a CPU",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="default: thinking_step_N.png in the run")
    parser.add_argument("--no-color", action="store_true", help="plain text with marks in place of colours")
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix.lower() != ".png":
        parser.error(f"--out {args.out}: expected a name that ends in .png")
    return args


def rows_of(splits: Sequence[PuzzleSplit], numbers: np.ndarray) -> dict[str, np.ndarray]:
    """The examples of these numbers over all sets of the split: inputs, labels [n, T], puzzle_identifiers [n]."""
    base = np.cumsum([0] + [split.num_examples for split in splits])
    parts = []
    for number in numbers:
        owner = int(np.searchsorted(base, number, side="right")) - 1
        parts.append(splits[owner].batch(np.array([number - base[owner]])))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def think(subject: Subject, numbers: np.ndarray) -> list[Thought]:
    """The model's answers to these examples after every ACT step."""
    model, device = subject.task.model, subject.opened.runtime.device
    thoughts = []
    pieces = [numbers[begin : begin + BATCH] for begin in range(0, len(numbers), BATCH)]
    for piece in progress(pieces, total=len(pieces), label="thinking"):
        arrays = rows_of(subject.splits, piece)
        batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        answers, halting = [], []
        for output in model.think(batch, subject.steps):
            answers.append(output.logits.argmax(dim=-1).cpu().numpy())
            halting.append(torch.sigmoid(output.q_halt_logits.float()).cpu().numpy())
        for row, number in enumerate(piece):
            thoughts.append(
                Thought(
                    int(number), arrays["inputs"][row], arrays["labels"][row],
                    np.stack([answer[row] for answer in answers]), np.array([q[row] for q in halting]),
                )
            )  # fmt: skip
    return thoughts


def choose(subject: Subject, args: argparse.Namespace) -> tuple[list[Thought], str]:
    """The examples to draw, and a sentence that says how they were chosen.

    Raises:
        UsageError: there is no such example.
    """
    total = sum(split.num_examples for split in subject.splits)
    if total == 0:
        raise UsageError(f"{subject.data[0]['path']} has no examples in the {args.split} split")
    if args.example is not None:
        if not 0 <= args.example < total:
            raise UsageError(f"--example {args.example}: the {args.split} split has examples 0 to {total - 1}")
        return think(subject, np.array([args.example])), ""
    among = args.among
    if among is None:
        among = AMONG
        if subject.opened.runtime.device.type == "cpu":
            among = int(min(AMONG, max(8.0, CPU_WORK / subject.task.model.flops(1)["eval"])))
    among = min(total, max(among, args.examples))
    pool = think(subject, np.unique(np.linspace(0, total - 1, among).round().astype(np.int64)))
    solved = sum(thought.solved_from is not None for thought in pool)
    chosen = most_interesting(pool, args.examples)
    unsolved = sum(thought.solved_from is None for thought in chosen)
    kinds = (["the last to be solved"] if unsolved < len(chosen) else []) + (
        [f"{unsolved} unsolved"] if unsolved else []
    )
    looked = f"; of {len(pool)} looked at {solved} are solved ({solved / len(pool):.1%})"
    return chosen, f"{looked}, drawn: {' and '.join(kinds)}"


def main(args: argparse.Namespace) -> None:
    """Think, print, draw."""
    from rich.console import Console

    from scripts._picture import draw_strip
    from scripts._terminal import draw

    out = None if args.out is None else args.out.absolute()
    subject = open_subject(args)
    opened = subject.opened
    metadata = subject.splits[0].metadata
    layout = layout_of(metadata.seq_len, metadata.vocab_size)
    thoughts, how = choose(subject, args)

    solved = sum(thought.solved_from is not None for thought in thoughts)
    weights = "averaged weights" if opened.weights == "ema" else "raw weights"
    shown = f"{solved} of {len(thoughts)} shown solved"
    subtitle = f"{args.split} split, {weights}, {subject.steps} ACT steps; {shown}{how}"
    plain = args.no_color or not sys.stdout.isatty() or "NO_COLOR" in os.environ
    # A file or a pipe has no width of its own.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(color_system=None if plain else "auto", highlight=False, width=width)
    console.print(f"{subject.name}, step {opened.checkpoint.step}", markup=False)
    console.print(subtitle, markup=False)
    draw(console, thoughts, layout)

    picture = draw_strip(thoughts, layout, title=f"{subject.name}  ·  step {opened.checkpoint.step}", subtitle=subtitle)
    target = out or opened.run_dir / f"thinking_step_{opened.checkpoint.step}.png"
    try:
        atomic_write_bytes(target, _png(picture))
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror}): name another file with --out") from None
    say(f"written {target} ({picture.width} x {picture.height})")


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


if __name__ == "__main__":
    arguments = parse()
    sys.exit(run_command(lambda: main(arguments)))
