"""Predict the test grids of one ARC task with a trained run: fit an embedding on its demonstrations, then vote.

A run of pretrain_etrm.py is shown the demonstrations, and nothing is fitted.

    python scripts/predict.py checkpoints/demo/arc task.json
    python scripts/predict.py checkpoints/demo/arc task.json --steps 400 --augmentations 100
    python scripts/predict.py checkpoints/demo/arc task.json --adapt full --lr 1e-4      # the network is trained too
    python scripts/predict.py checkpoints/demo/arc task.json --act-steps 32 --out answers/task.json
    python scripts/predict.py checkpoints/pretrain_etrm/RUN data/few-shot-6x6/tasks/evaluation/bordered_e0002.json

The task is a JSON file, {"train": [{"input": grid, "output": grid}, ...], "test": [{"input": grid}, ...]}. Grids are
printed, and written as JSON and PNG. Fitting is test-time training, protocol class (ii), and showing is class (i),
unless the run was trained on the task, which is looked up in its data; every result states its class.
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

from dataset.arguments import positive, script_parser, whole


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("checkpoint", type=Path, help="a run directory (its latest checkpoint) or a step_N directory")
    parser.add_argument("task", type=Path, help="a JSON file with one task")
    parser.add_argument("--steps", type=whole, metavar="N", help="training steps; default: 200")
    parser.add_argument(
        "--augmentations",
        type=whole,
        metavar="N",
        help="augmented copies in addition to the task itself; default: 50, for a run with demonstrations at most as "
        "many as its data have",
    )
    parser.add_argument(
        "--adapt",
        choices=("embedding", "full"),
        help="train the task's embedding only, or the network too; default: embedding",
    )
    parser.add_argument("--embedding-lr", type=float, metavar="LR", help="default: the run's puzzle_emb_lr")
    parser.add_argument("--lr", type=float, help="of the network with --adapt full; default: the run's lr")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="rows of a step; default: 32")
    parser.add_argument("--act-steps", type=positive, metavar="N", help="ACT steps; default: arch.halt_max_steps")
    parser.add_argument("--canvas", type=positive, metavar="SIDE", help="default: that of the run's data")
    parser.add_argument("--seed", type=whole, default=0, help="of augmentations and training; default: 0")
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: averaged, if the run keeps them")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: auto")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="default: TASK_prediction.json here, with a picture next to it"
    )
    parser.add_argument("--no-color", action="store_true", help="digits without colours")
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix != ".json":
        parser.error(f"--out {args.out}: expected a name that ends in .json")
    if args.lr is not None and args.adapt != "full":
        parser.error("--lr is of the network, which only --adapt full trains; --embedding-lr is of the embedding")
    for name in ("lr", "embedding_lr"):
        if (value := getattr(args, name)) is not None and not 0 <= value < float("inf"):
            parser.error(f"--{name.replace('_', '-')} {value}: expected a number from 0")
    return args


def main(args: argparse.Namespace) -> None:
    """Predict with the function of the family that wrote the checkpoint, then print and draw."""
    from engine.run.load_run import family_function
    from viewer.output import check_record, show_prediction

    target = (args.out or Path(f"{args.task.stem}_prediction.json")).absolute()
    check_record(target)
    record = family_function(args.checkpoint, "prediction", "predict_task")(args)
    show_prediction(record, target, no_color=args.no_color)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
