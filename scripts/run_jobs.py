"""Run the jobs of a job file, one after another or several at once; several runners may share one file.

    python scripts/run_jobs.py jobs-trm.txt                          # every [ ] line, from the top
    python scripts/run_jobs.py jobs-trm.txt --dry-run                # what it would do
    python scripts/run_jobs.py jobs-trm.txt --status                 # where everything stands
    python scripts/run_jobs.py jobs-trm.txt --only sudoku_4x4 --retries 2
    python scripts/run_jobs.py jobs-trm.txt --gpus 0,1,2,3 --jobs 4  # four at a time, each with as many GPUs as ranks
    python scripts/run_jobs.py jobs-trm.txt --launcher slurm --slurm timeout_min=720 --slurm slurm_partition=gpu

Marks: [ ] to do, [-] running, [x] done, [!] failed. Ctrl-C or SIGTERM lets the running jobs write a checkpoint and puts
their marks back to [ ]; the next runner goes on from there. A runner that was killed leaves nothing to repair.
Commands run from the current folder (--cwd), without a shell. Exit code: 0 done, 1 a job failed, 2 unusable, 3 stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute

if __name__ == "__main__":
    begin(run=True)

from dataset.arguments import OneLineParser
from engine.errors import UsageError
from engine.io import did_you_mean, print_rank0
from launcher.jobs import find
from launcher.ledger import HOST, Ledger
from launcher.runner import Options, Runner, gpus_of, plan
from launcher.slurm import parameter, submit
from launcher.status import table

ROOT = Path(__file__).resolve().parents[1]


def _count(least: int) -> Any:
    def whole(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}")
        return int(text)

    return whole


def _gpus(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: expected different GPUs such as 0,1,2,3")
    return names


def _slurm(text: str) -> tuple[str, Any]:
    try:
        return parameter(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected key=value, e.g. timeout_min=720") from None


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one exits 2."""
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = OneLineParser(
        prog="run_jobs.py", description=description, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jobfile", help="a path, or the bare name of a file in jobs/")
    parser.add_argument("--only", action="append", default=[], metavar="ID", help="an id or L<line>; repeatable")
    parser.add_argument("--once", action="store_true", help="at most one job")
    parser.add_argument("--failed", action="store_true", help="take [!] lines too")
    parser.add_argument("--retries", type=_count(0), default=0, metavar="N", help="try a failed job N times more")
    parser.add_argument("--jobs", type=_count(1), default=1, metavar="N", help="how many at once (default 1)")
    parser.add_argument("--gpus", type=_gpus, metavar="0,1,..", help="share these out through CUDA_VISIBLE_DEVICES")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="where output goes; default: logs/<job file>")
    parser.add_argument("--cwd", type=Path, default=Path(), metavar="DIR", help="where commands run (default: here)")
    parser.add_argument(
        "--take-over", action="append", default=[], metavar="HOST", help="its runners are gone for good"
    )
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="this machine, or a cluster")
    parser.add_argument("--slurm", type=_slurm, action="append", default=[], metavar="KEY=VALUE", help="for submitit")
    parser.add_argument("--status", action="store_true", help="show the table and exit")
    parser.add_argument("--dry-run", action="store_true", help="show what would be run and exit")
    return parser.parse_args(argv)


def options_of(args: argparse.Namespace, ledger: Ledger) -> Options:
    """Check the arguments against the file. Raises: UsageError."""
    cwd = Path(os.path.abspath(args.cwd))
    if not cwd.is_dir():
        raise UsageError(f"--cwd={args.cwd}: there is no such folder")
    file = ledger.read()
    if args.slurm and args.launcher != "slurm":
        raise UsageError("--slurm is for --launcher slurm")
    known = {name for job in file.jobs for name in (job.id, job.key, f"L{job.line_number}")}
    for name in args.only:
        if name not in known:
            raise UsageError(
                f"--only {name}: {ledger.path.name} has no such job: {did_you_mean(name, {j.id for j in file.jobs})}"
            )
    options = Options(
        cwd=cwd,
        logs=Path(os.path.abspath(args.logs)) if args.logs else cwd / "logs" / ledger.path.stem,
        only=frozenset(args.only), jobs=args.jobs, gpus=args.gpus, retries=args.retries, once=args.once,
        failed=args.failed, hosts=frozenset(args.take_over),
    )  # fmt: skip
    return options


def check(ledger: Ledger, options: Options) -> None:
    """Refuse a file that would not do what it seems to say. Raises: UsageError."""
    file, name = ledger.read(), ledger.path.name
    for number, text in file.problems:
        raise UsageError(f"{name} line {number}: {text}")
    seen: dict[tuple[str, str | None], int] = {}
    for job in file.jobs:
        if not options.wants(job) or job.mark not in " -" + options.marks:
            continue
        if job.error:
            raise UsageError(f"{name} line {job.line_number}: {job.error}")
        same = (job.id, None if job.label else job.value("project_name"))
        if same in seen:
            raise UsageError(
                f"{name} lines {seen[same]} and {job.line_number} are both {job.id}: run names must differ"
            )
        seen[same] = job.line_number
        if options.gpus is not None and (need := gpus_of(job, len(options.gpus))) > len(options.gpus):
            raise UsageError(f"{job.id} (line {job.line_number}) needs {need} GPUs, --gpus names {len(options.gpus)}")


def to_slurm(args: argparse.Namespace, ledger: Ledger, options: Options) -> int:
    """Queue every line that is to do. Returns the exit code."""
    jobs = [job for job in ledger.read().jobs if options.wants(job) and job.mark in options.marks]
    jobs = jobs[:1] if options.once else jobs
    if not jobs:
        print_rank0(f"nothing to do in {ledger.path.name}")
        return 0
    more = ["--failed"] * options.failed + [word for host in options.hosts for word in ("--take-over", host)]
    commands = [
        (
            job.id,
            gpus_of(job, 1),
            [sys.executable, str(ROOT / "scripts" / "run_jobs.py"), str(ledger.path), "--only", job.key, "--once",
             "--retries", str(options.retries), "--logs", str(options.logs), "--cwd", str(options.cwd), *more],
        )
        for job in jobs
    ]  # fmt: skip
    if args.dry_run:
        plan(ledger, options, print_rank0)
        return 0
    ids = submit(commands, folder=options.logs / "slurm", cwd=options.cwd, parameters=dict(args.slurm))
    for job, number in zip(jobs, ids, strict=True):
        print_rank0(f"{job.id}: queued as Slurm job {number}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Do what was asked. Raises: UsageError."""
    ledger = Ledger(find(args.jobfile, (".", ROOT)))
    options = options_of(args, ledger)
    if args.status:
        for line in table(ledger, options.cwd):
            print_rank0(line)
        return 0
    check(ledger, options)
    if args.launcher == "slurm":
        return to_slurm(args, ledger, options)
    if args.dry_run:
        if not plan(ledger, options, print_rank0):
            print_rank0(f"nothing to do in {ledger.path.name}")
        return 0
    runner = Runner(ledger, options)
    code = runner.run()
    left = [job for job in ledger.read().jobs if job.mark == "-" and ledger.owner_alive(job) is None]
    done, failed, todo = (runner.results[state] for state in ("done", "failed", "todo"))
    if runner.started:
        print_rank0(f"{done} done, {failed} failed, {todo} interrupted")
    else:
        print_rank0(f"nothing to do in {ledger.path.name}{_why_nothing(ledger, options)}")
    for job in left:
        host = job.owner[1] if job.owner else None
        hint = f"--take-over {host} if it is gone" if host else "put [ ] if nobody runs it"
        print_rank0(f"{job.id} is marked [-] by {host or 'nobody named'}, not by {HOST}: {hint}")
    return code


def _why_nothing(ledger: Ledger, options: Options) -> str:
    asked = [job for job in ledger.read().jobs if options.only and options.wants(job)]
    hints = {
        "!": "failed (--failed takes it)",
        "x": "done (put [ ] to run it again)",
        "-": "running",
        " ": "still running",
    }
    return "".join(f"; {job.id} is {hints[job.mark]}" for job in asked)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code; errors are one line."""
    try:
        return run(parse(argv))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    execute(main)
