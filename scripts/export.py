"""Write a model as a graph that runs without this project: a torch.export program, or ONNX.

    python scripts/export.py checkpoints/demo/sudoku_4x4 --format onnx --out exported/sudoku_4x4
    python exported/sudoku_4x4/evaluate.py data/sudoku-4x4           # needs numpy and onnxruntime alone
    python scripts/export.py out/shakespeare --format export --out exported/shakespeare

For a recursive model (pretrain.py) the graph is one ACT step: cells and state in, next state, logits and halting out.
For a language model (train.py) it maps tokens to logits. Before the folder is created, the written graph is checked
against the model.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, run_command

if __name__ == "__main__":
    begin()

from dataset.arguments import script_parser
from engine.errors import UsageError
from reports.model_card import add_card_arguments


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument(
        "checkpoint", type=Path, help="a run directory (its latest checkpoint) or one of its checkpoints"
    )
    parser.add_argument(
        "--format", choices=("export", "onnx"), required=True, help="model.pt2 of torch.export, model.onnx"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to create; an existing one is refused")
    parser.add_argument(
        "--weights", choices=("ema", "raw"), help="averaged or raw; default: averaged, if the run keeps them"
    )
    add_card_arguments(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the folder."""
    from engine.run.load_run import family_function
    from reports.output import check_place
    from tasks.graphs import require_format
    from verification.static import run_verdict

    require_format(args.format)
    if os.path.lexists(args.out):
        raise UsageError(f"{args.out} exists already: remove it or choose another folder")
    check_place(args.out, example="exported")
    family_function(args.checkpoint, "graph", "export_graph")(args, run_verdict)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
