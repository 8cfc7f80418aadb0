"""Evaluate a checkpoint: accuracy after every ACT step with 95 % intervals; for train.py, losses and bits per byte.

    python scripts/evaluate.py checkpoints/demo/sudoku_4x4
    python scripts/evaluate.py checkpoints/demo/sudoku_4x4/checkpoints/step_500 --steps 64      # think longer
    python scripts/evaluate.py checkpoints/demo/sudoku_4x4 --halting latched                    # stop when it halts
    python scripts/evaluate.py checkpoints/demo/sudoku_4x4 --rollouts 8                 # several answers, one chosen
    torchrun --nproc-per-node=4 scripts/evaluate.py checkpoints/demo/sudoku_4x4 --batch-size 3072
    python scripts/evaluate.py out/shakespeare/ckpt.pt                               # the best, not the latest
    python scripts/evaluate.py out/shakespeare --data more                           # a data set of the same tokenizer
    python scripts/evaluate.py diversity_model                                       # of train_animal.py

Without further arguments it repeats the evaluation at the end of the run: same examples, weights and numbers. Options
on ACT steps, rollouts, examples and splits are for runs of pretrain.py; for a hypernetwork `--steps` are passes.
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
from tasks.loading import add_run_arguments


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    add_run_arguments(parser)
    parser.add_argument(
        "--max-examples",
        metavar="N|all",
        help="a fixed random subset of N; default: as in the run's last evaluation",
    )
    parser.add_argument("--max-groups", type=positive, metavar="N", help="only the first N groups (ARC: tasks)")
    parser.add_argument(
        "--max-augmentations",
        type=positive,
        metavar="N",
        help="only the first N puzzles of each group (ARC: a task and its first augmented copies)",
    )
    parser.add_argument(
        "--halting",
        choices=("fixed", "latched"),
        help="latched: a row keeps the answer of the step at which it halts; default: arch.eval_halting",
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help="examples per batch; default: as in the run")
    parser.add_argument(
        "--rollouts",
        type=positive,
        metavar="N",
        help="answer each puzzle N times and choose one of the answers without the label; the first is the plain one",
    )
    parser.add_argument(
        "--vary",
        choices=("init", "noise", "symmetry"),
        help="how rollouts differ: random latents, noise at every step, symmetries of the data set; default: symmetry "
        "where the data set has symmetries, else init",
    )
    parser.add_argument(
        "--select",
        choices=("residual", "q", "first", "vote", "vote_cells"),
        help="chosen answer: the one that changed least, the most confident, the first to halt, the most frequent, in "
        "each cell the most frequent; default: vote for symmetries, else q",
    )
    parser.add_argument("--sigma", type=float, metavar="S", help="size of the noise of --vary noise; default: 0.3")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="file of the figures; default: evaluation_step_N.json in the run"
    )
    args = parser.parse_args(argv)
    if args.max_examples not in (None, "all"):
        try:
            args.max_examples = positive(args.max_examples)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --max-examples: {error}, or all")
    return args


def main(args: argparse.Namespace) -> None:
    """Evaluate with the function of the family that wrote the checkpoint, else the common one."""
    from engine.registry import family_of
    from engine.run.load_run import find_checkpoint
    from reports.output import check_json_target
    from tasks import evaluation

    check_json_target(args.json)
    checkpoint = find_checkpoint(args.checkpoint)
    family = family_of(checkpoint.entry, f"checkpoint {checkpoint.path}: entry")
    (family.function("evaluate", "evaluate_run") or evaluation.evaluate_run)(args)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
