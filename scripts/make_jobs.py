"""Write a job file from a grid: one job for each combination of factors and seeds, each with its own run name.

    python scripts/make_jobs.py sweep.yaml                       # prints the jobs
    python scripts/make_jobs.py sweep.yaml --out jobs/jobs-sweep.txt

    base: torchrun --standalone --nproc-per-node=2 pretrain.py --config-name=cfg_pretrain_sudoku_4x4 project_name=sweep
    name: depth                                  # run names begin with this
    intent: {mode: embedding, act: dynamic, encoder: none, purpose: new}
    comment: Does a deeper recursion make up for a narrower network?
    factors:
      arch.L_cycles: [1, 2, 4]
      arch.hidden_size: [32, 64]
      size:                                      # no dot, values are mappings: keys that change together, by name
        small: {arch.num_heads: 4, lr: 2.0e-3}
        large: {arch.num_heads: 8, lr: 1.0e-3}
    exclude:
      - {arch.L_cycles: 4, size: large}          # every combination that agrees with all of this
    seeds: [0, 1, 2]                             # or a number: 3

That is 30 jobs; the first one's run_name is depth-L_cycles1-hidden_size32-small-seed0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, print_data

if __name__ == "__main__":
    begin(output_is_all=True)

from dataset.arguments import script_parser
from engine.errors import UsageError
from engine.io import print_rank0
from launcher.grid import job_lines, load, write


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("grid", type=Path, help="a YAML file, as below")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the job file to write; default: print")
    parser.add_argument("--append", action="store_true", help="add to a job file; its jobs and states stay")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code; errors are printed in one line."""
    args = parse(argv)
    try:
        if args.append and not args.out:
            raise UsageError("--append adds to a job file: name it with --out FILE")
        lines, count = job_lines(load(args.grid))
        if args.out:
            write(lines, args.out, append=args.append)
            print_rank0(f"{count} jobs in {args.out}")
        else:
            print_data("\n".join(lines) + "\n")
            print(f"{count} jobs", file=sys.stderr)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    execute(main)
