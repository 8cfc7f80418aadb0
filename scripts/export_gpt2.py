"""Export a model of train.py as a GPT-2 in transformers' format, for peft, train_animal.py and other readers.

    python scripts/export_gpt2.py out/shakespeare exported/shakespeare
    python -c "from transformers import GPT2LMHeadModel as M; M.from_pretrained('exported/shakespeare')"

The folder gets config.json, model.safetensors, a model card (README.md), and a tokenizer if transformers can express
it. Logits are equal up to float32 rounding. Only GPT-2 models can be exported: arch=gpt or arch=gpt2, also with other
sizes, biases or activation.
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
from reports.model_card import add_card_arguments


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("run", type=Path, help="a run directory of train.py, or one of its checkpoints")
    parser.add_argument("folder", type=Path, help="to create; an existing one is refused")
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best (default), latest or step_N")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged (if there are any) or raw")
    add_card_arguments(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the folder."""
    from engine.run.load_run import family_function
    from tasks.loading import pick_checkpoint
    from verification.static import run_verdict

    family_function(pick_checkpoint(args.run, args.checkpoint), "export", "export_run")(args, run_verdict)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
