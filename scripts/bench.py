"""Time our training step, evaluation and batches beside the published form of each, on one CPU core.

    python scripts/bench.py                                     # the whole table: 15 CPU minutes
    python scripts/bench.py --only 'training: mlp_t' --pairs 5
    python scripts/bench.py --json bench.json

The published form is TRM's and HRM's public code in eager mode, written out literally: weights are cast at each call,
metrics are read at each step, optimizers go from parameter to parameter. Both sides take turns in one process, and CPU
time is what is read, since a machine may have other work. A ratio above 1 means that ours is faster.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, run_command

if __name__ == "__main__":
    begin()

from dataset.arguments import positive, script_parser
from engine.errors import UsageError


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="lines whose name contains it; default: all")
    parser.add_argument("--pairs", type=positive, default=7, help="measurements of each side; default: 7")
    parser.add_argument("--threads", type=positive, default=1, help="of torch, for both sides; default: 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args: argparse.Namespace = parser.parse_args(argv)
    return args


def report(args: argparse.Namespace) -> None:
    """Measure and print. Raises: UsageError."""
    import torch

    from engine.run.environment import describe_environment
    from reports.output import write_json_result
    from tasks.recursive_reasoning.step_benchmark.measure import all_rows, names

    if not any(args.only in name for name in names()):
        raise UsageError(f"--only {args.only!r}: no line is named so; there are\n  " + "\n  ".join(names()))
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    print("| | ours, ms | published form, ms | ratio | quartiles |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for row in all_rows(args.only, args.pairs, Path(folder)):
            rows.append(figures := row.figures())
            low, high = figures["quartiles"]
            times = f"{figures['ours_ms']:.4g} | {figures['literal_ms']:.4g}"
            print(f"| {row.name} | {times} | {figures['ratio']:.2f} | {low:.2f} .. {high:.2f} |", flush=True)
    if args.json is not None:
        about = describe_environment()
        settings = {"threads": args.threads, "pairs": args.pairs, "environment": about}
        write_json_result(args.json, {**settings, "rows": rows})


def main() -> int:
    args = parse()
    return run_command(lambda: report(args))


if __name__ == "__main__":
    execute(main)
