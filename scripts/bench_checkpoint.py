"""Time the cost of a checkpoint with a large puzzle table: written synchronously, and in the background.

    python scripts/bench_checkpoint.py                              # the table of ARC-AGI-1: 5 GB of memory, 8 of disk
    python scripts/bench_checkpoint.py --identifiers 20000 --rounds 2

Both ways alternate in one run; printed are the median, minimum and maximum, and the ratios of adjacent measurements.
The optimizer's update of the table is timed as well, and compared with a table of 1,000 rows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
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
    parser.add_argument("--identifiers", type=positive, default=876_406, help="rows of the table; default: 876406")
    parser.add_argument("--width", type=positive, default=512, help="of the model and the table; default: 512")
    parser.add_argument("--rounds", type=positive, default=3, help="saves of each kind; default: 3")
    parser.add_argument("--folder", type=Path, help="where the run writes, then removed; default: a temporary folder")
    parser.add_argument("--threads", type=positive, default=1, help="of torch; default: 1, so a core is left to write")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure and print."""
    import torch

    from reports.output import write_json_result
    from tasks.recursive_reasoning.checkpoint_benchmark import measure, show, time_table_update

    torch.set_num_threads(args.threads)
    update = time_table_update(args.identifiers, args.width)
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir=args.folder) as folder:
        figures = measure(args.identifiers, args.width, args.rounds, Path(folder))
    show(figures, update)
    if args.json is not None:
        write_json_result(args.json, {**figures, "touch": update})


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
