"""Convert checkpoints: import those of the public TRM and HRM code, export runs for that code or for the Hub.

    python scripts/convert.py import downloads/trm-maze checkpoints/imported/maze --data data/maze-30x30-hard-1k
    python scripts/evaluate.py checkpoints/imported/maze
    python scripts/convert.py export checkpoints/imported/maze exported/maze
    python scripts/convert.py pretrained checkpoints/demo/sudoku_4x4 published/sudoku_4x4

An import takes sizes from the shapes of the tensors and everything else from all_config.yaml in the same folder. If
they contradict each other, all mismatching tensors are listed with both shapes, and nothing is written.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, run_command

if __name__ == "__main__":
    begin()

from dataset.arguments import positive, script_parser
from reports.model_card import add_card_arguments


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument(
        "action",
        choices=("import", "export", "pretrained"),
        help="import a public checkpoint; export a run in the public layout, or as a folder for from_pretrained",
    )
    parser.add_argument("source", type=Path, help="to import: a state dict or its folder; else a run or checkpoint")
    parser.add_argument("folder", type=Path, help="to create; an existing one is refused")
    parser.add_argument(
        "values",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="import: keys that all_config.yaml lacks, e.g. arch.H_cycles=3",
    )
    parser.add_argument(
        "--data", nargs="+", type=Path, metavar="PATH", help="import: its data sets; default: those of all_config.yaml"
    )
    parser.add_argument(
        "--step", type=positive, metavar="N", help="import: the step it was saved at; default: that of the file's name"
    )
    parser.add_argument(
        "--weights", choices=("ema", "raw"), default="ema", help="to write: averaged (if there are any) or raw"
    )
    parser.add_argument("--no-table", action="store_true", help="pretrained: leave the puzzle table out")
    add_card_arguments(parser)
    args = parser.parse_args(argv)
    given = [str(path) for path in args.data or ()]  # `--data PATH KEY=VALUE`: argparse gives both to --data
    args.values += filter(_is_setting, given)
    args.data = [Path(word) for word in given if not _is_setting(word)] or None
    return args


def _is_setting(word: str) -> bool:
    """Is this word behind --data a KEY=VALUE, and not a folder with = in its name?"""
    return re.match(r"[A-Za-z_][\w.]*=", word) is not None and not Path(word).exists()


def main(args: argparse.Namespace) -> None:
    """Import or export."""
    from tasks.recursive_reasoning.pretrained import write_pretrained
    from tasks.recursive_reasoning.public.convert import export_run, import_run
    from verification.static import run_verdict

    if args.action == "import":
        import_run(args)
    else:
        {"export": export_run, "pretrained": write_pretrained}[args.action](args, run_verdict)


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
