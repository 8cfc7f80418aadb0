"""Does a command survive? It meets seeded faults, is restarted each time, and must end like an undisturbed one.

    python scripts/chaos.py --faults 20 -- python pretrain.py --config-name=cfg_pretrain_sudoku_4x4 +debug=tiny \\
        device=cpu max_steps=12 epochs=4 checkpoint_interval=2 keep_last=3
    python scripts/chaos.py --plan --seed 1 --kinds kill disk -- python pretrain.py
    python scripts/chaos.py --ranks 2 --kinds rank term -- python train.py +debug=tiny_text device=cpu
    python scripts/chaos.py --kinds queue --from folder -- python scripts/run_jobs.py jobs.txt --failed

Every attempt has its own temporary working folder, to which paths in the command are relative; files that the command
needs there come from --from. Metrics without wall-clock times, the last and the best checkpoint, and every other file
are compared; a leftover file or a held lock counts too. docs/chaos.md lists the kinds of faults. The exit code is 1 if
anything differs, or no fault struck.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute

if __name__ == "__main__":
    begin(output_is_all=True)

from dataset.arguments import positive, script_parser, whole
from engine.errors import RunFailure, UsageError


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2. The command follows `--`."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--") if "--" in words else len(words)
    parser = script_parser(__file__, __doc__)
    add = parser.add_argument
    add("--seed", type=whole, default=0, metavar="S", help="another seed is another plan")
    add("--faults", type=positive, default=20, metavar="N", help="how many")
    add("--kinds", nargs="+", default=[], metavar="KIND", help="default: those that the command can meet")
    add("--ranks", type=positive, default=1, metavar="N", help="processes of the command, over gloo")
    add("--from", type=Path, dest="begin", metavar="DIR", help="initial content of each working folder (copied)")
    add("--plan", action="store_true", help="print the plan and run nothing")
    add("--out", type=Path, default=Path("chaos.json"), metavar="FILE", help="the result, as JSON")
    args = parser.parse_args(words[:at])
    args.command = words[at + 1 :]
    return args


def main(args: argparse.Namespace) -> int:
    """Plan and run the storm, print its results; return the exit code."""
    from chaos.faults import plan
    from chaos.result import as_table, measure
    from chaos.storm import Command
    from engine.io import atomic_write_json
    from reports.output import check_place

    try:
        command = Command.of(args.command, args.ranks)
        if "queue" in args.kinds and not command.is_queue:
            raise UsageError(f"--kinds queue is for a runner of jobs, scripts/run_jobs.py, not for {command.script}")
        attempts = plan(args.seed, args.faults, args.kinds or command.default_kinds(), args.ranks)
        if args.begin is not None and not args.begin.is_dir():
            raise UsageError(f"--from {args.begin}: there is no such folder")
        if args.plan:
            for number, attempt in enumerate(attempts, 1):
                print(f"{number}. " + "\n   ".join(map(str, attempt.faults)))
            return 0
        check_place(args.out, example="chaos.json")
        result = measure(command, attempts, args.seed, args.begin)
    except (UsageError, RunFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(as_table(result), flush=True)
    atomic_write_json(args.out, result)
    if not any(kind["struck"] for kind in result["kinds"].values()):
        print("error: no fault occurred, so nothing was tested: use more --faults, or a longer run", file=sys.stderr)
        return 1
    return int(any(attempt["problems"] for attempt in result["attempts"]))


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: main(arguments))
