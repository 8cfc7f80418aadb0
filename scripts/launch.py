"""Launch one job anywhere: here, on several processes or machines, on a Slurm cluster, on a cloud.

    python scripts/launch.py --to local trm:sudoku_4x4                  # a job of jobs/jobs-trm.txt, as run_jobs.py
    python scripts/launch.py --to torchrun --ranks 2 -- python pretrain.py --config-name=cfg_pretrain_sudoku_4x4
    python scripts/launch.py --to slurm --nodes 2 --ranks 8 --partition gpu --time 12:00:00 trm:sudoku_extreme_mlp
    python scripts/launch.py --to skypilot --ranks 8 --accelerator H100 --spot trm:sudoku_extreme_mlp
    python scripts/launch.py --to slurm --dry-run trm:sudoku_4x4        # exactly what would be submitted

The command is verified first, by the rules of a launch (verify_path.py), and refused if one fails.
Exit code: 0 done or submitted, 1 failed, 2 unusable, 3 stopped and saved: the same command resumes. docs/launching.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute

if __name__ == "__main__":
    begin(run=True)

from dataset.arguments import positive, script_parser, whole
from engine.errors import UsageError
from launcher.destination import DESTINATIONS, bucket, gigabytes, meeting_point, minutes, queue_name, spec_of
from launcher.launching import launch
from launcher.slurm import parameter
from verification.submission import review


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2. `command` holds the words after `--`."""
    words = list(sys.argv[1:] if argv is None else argv)
    words, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = script_parser(__file__, __doc__)
    add = parser.add_argument
    add("job", nargs="?", metavar="FILE:NAME", help="a job of a job file (jobs-trm.txt, trm), by id or L<line>")
    add("--to", choices=DESTINATIONS, required=True, help="where")
    add("--dry-run", action="store_true", help="print exactly what would be started or submitted, and exit")
    add("--no-verify", action="store_true", help="do not review the command first (its run does it in any case)")
    add("--cwd", type=Path, default=Path(), metavar="DIR", help="where the command runs (default: here)")
    add("--logs", type=Path, metavar="DIR", help="where output goes; default: logs/<job file>")
    add = parser.add_argument_group("processes (torchrun, slurm, skypilot)").add_argument
    add("--ranks", metavar="N", type=positive, help="processes on each node; default: as the command says, else 1")
    add("--nodes", metavar="N", type=positive, help="machines (default 1)")
    add("--node-rank", metavar="N", type=whole, help="torchrun: which of the machines this is, from 0")
    add(
        "--head",
        type=meeting_point,
        metavar="HOST:PORT",
        help="torchrun: machine 0, as the others reach it (default port 29400)",
    )
    add = parser.add_argument_group("machines (slurm, skypilot)").add_argument
    add("--gpus", metavar="N", type=whole, help="GPUs of each node; default: one a process, none with device=cpu")
    add("--cpus", metavar="N", type=positive, help="CPU cores of each node")
    add("--mem", metavar="64G", type=gigabytes, help="memory of each node")
    add("--name", type=queue_name, help="the name in the queue; default: the job's id")
    add = parser.add_argument_group("slurm").add_argument
    add("--partition", help="the partition")
    add("--time", type=minutes, metavar="HH:MM:SS", help="the limit, also as minutes or D-HH:MM:SS")
    add("--account", help="the account that pays")
    add("--qos", help="the quality of service")
    add("--grace", type=positive, metavar="S", help="seconds before the limit at which the run saves (default 90)")
    add("--requeues", type=whole, metavar="N", help="how often it is queued again at its limit (default 100)")
    add("--slurm", type=parameter, action="append", default=[], metavar="KEY=VALUE", help="any parameter of submitit")
    add = parser.add_argument_group("skypilot").add_argument
    add("--accelerator", metavar="NAME", help="the kind of GPU: H100, A100-80GB, L4")
    add("--spot", action="store_true", help="machines that may be taken away at any time")
    add("--infra", metavar="CLOUD", help="cloud[/region[/zone]]; default: the cheapest that has it")
    add(
        "--checkpoints",
        type=bucket,
        metavar="URI",
        help="a bucket (s3://..., gs://...) for checkpoints/, which outlives machines",
    )
    add("--prepare", action="append", default=[], metavar="COMMAND", help="a shell line before the first start: data")
    add("--restarts", type=whole, metavar="N", help="how often a failed run is started again (default 0)")
    add("--out", type=Path, metavar="FILE", help="the task's file (default: NAME.sky.yaml)")
    args = parser.parse_args(words)
    args.command = command
    return args


def run(args: argparse.Namespace) -> int:
    """Verify and launch; return the exit code. Raises: UsageError."""
    spec = spec_of(args)
    if args.out is not None:
        from reports.output import check_place

        check_place(args.out, example="task.sky.yaml")
    if not args.no_verify:
        review(spec, args.to, lambda line: print(line, file=sys.stderr))
    return launch(spec, args.to, dry=args.dry_run)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code; errors are printed in one line."""
    try:
        return run(parse(argv))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    execute(main)
