"""Run the jobs of a job file, one after another or several at once; several runners may share one file.

    python scripts/run_jobs.py jobs-trm.txt                          # every [ ] line, from the top
    python scripts/run_jobs.py jobs-trm.txt --dry-run                # what it would do
    python scripts/run_jobs.py jobs-trm.txt --status                 # the state of every job
    python scripts/run_jobs.py jobs-trm.txt --only sudoku_4x4 --retries 2
    python scripts/run_jobs.py jobs-trm.txt --gpus 0,1,2,3 --jobs 4  # four at a time, each with as many GPUs as ranks
    python scripts/run_jobs.py jobs-trm.txt --launcher slurm --slurm timeout_min=720 --slurm slurm_partition=gpu

Marks: [ ] to do, [-] running, [x] done, [!] failed. On Ctrl-C or SIGTERM the running jobs write a checkpoint and are
marked [ ] again; the next runner resumes them. A killed runner leaves nothing to repair.
Commands run in the current folder (--cwd), without a shell. Exit code: 0 done, 1 a job failed, 2 unusable, 3 stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute

if __name__ == "__main__":
    begin(run=True)

from dataset.arguments import positive, script_parser, whole
from engine.errors import UsageError
from engine.io import print_rank0
from engine.registry import ROOT
from launcher.gpus import gpu_names
from launcher.jobs import find
from launcher.ledger import Ledger
from launcher.queue import Options, check, check_only, describe, waiting
from launcher.runner import run_jobs
from launcher.slurm import parameter, runner_commands, submit
from launcher.status import status_lines


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    add = parser.add_argument
    add("jobfile", help="a path, or the bare name of a file in jobs/")
    add("--only", action="append", default=[], metavar="ID", help="an id or L<line>; repeatable")
    add("--once", action="store_true", help="at most one job")
    add("--failed", action="store_true", help="also run [!] lines")
    add("--retries", type=whole, default=0, metavar="N", help="try a failed job N times more")
    add("--jobs", type=positive, default=1, metavar="N", help="how many at once (default 1)")
    add("--gpus", type=gpu_names, metavar="0,1,..", help="share these out through CUDA_VISIBLE_DEVICES")
    add("--logs", type=Path, metavar="DIR", help="where output goes; default: logs/<job file>")
    add("--cwd", type=Path, default=Path(), metavar="DIR", help="where commands run (default: here)")
    add("--take-over", action="append", default=[], metavar="HOST", help="its runners are gone for good")
    add("--launcher", choices=("local", "slurm"), default="local", help="this machine, or a cluster")
    add("--slurm", type=parameter, action="append", default=[], metavar="KEY=VALUE", help="for submitit")
    add("--status", action="store_true", help="show the table and exit")
    add("--dry-run", action="store_true", help="show what would be run and exit")
    return parser.parse_args(argv)


def options_of(args: argparse.Namespace, ledger: Ledger) -> Options:
    """The runner's options. Raises: UsageError for values that the parser cannot check."""
    cwd = Path(os.path.abspath(args.cwd))
    if not cwd.is_dir():
        raise UsageError(f"--cwd={args.cwd}: there is no such folder")
    if args.slurm and args.launcher != "slurm":
        raise UsageError("--slurm is for --launcher slurm")
    logs = Path(os.path.abspath(args.logs)) if args.logs else cwd / "logs" / ledger.path.stem
    plain = {name: getattr(args, name) for name in ("jobs", "gpus", "retries", "once", "failed")}
    return Options(cwd=cwd, logs=logs, only=frozenset(args.only), take_over=frozenset(args.take_over), **plain)


def run(args: argparse.Namespace) -> int:
    """Run the jobs, or print what was asked for; return the exit code. Raises: UsageError."""
    ledger = Ledger(find(args.jobfile, (".", ROOT)))
    options = options_of(args, ledger)
    check_only(ledger, options)
    if args.status:
        lines = status_lines(ledger, options.cwd)
    elif args.dry_run:
        check(ledger, options)
        lines = [describe(number, job, options) for number, job in enumerate(waiting(ledger, options), 1)]
    elif args.launcher == "slurm":
        check(ledger, options)
        commands = runner_commands(Path(__file__).resolve(), ledger, options)
        ids = submit(commands, folder=options.logs / "slurm", cwd=options.cwd, parameters=dict(args.slurm))
        lines = [f"{name}: queued as Slurm job {number}" for (name, *_), number in zip(commands, ids, strict=True)]
    else:
        check(ledger, options)
        return run_jobs(ledger, options)
    for line in lines or [f"nothing to do in {ledger.path.name}"]:
        print_rank0(line)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code; errors are printed in one line."""
    try:
        return run(parse(argv))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    execute(main)
