"""Run a track with its fixed budget and add its record to docs/results/speedruns.md.

    python scripts/speedrun.py sudoku-4x4-cpu          # steps and CPU seconds to 0.95 and 0.98 exact: half a minute
    python scripts/speedrun.py sudoku-hard-gpu         # exact accuracy after 9,000 steps, at most 8 minutes, on one GPU
    python scripts/speedrun.py lm-5min                 # validation loss after 5 minutes of training
    python scripts/speedrun.py lm-5min --dry-run       # the commands, nothing is run
    python scripts/speedrun.py sudoku-4x4-cpu --seeds 0 1 2 3 4 --set lr=0.04

Each seed is one plain launch; the runs stay in --out. Only seconds of training steps count, not start-up, evaluations
or checkpoints. If checkpoints are searched for a target, that happens after the run.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute

if __name__ == "__main__":
    begin(run=True)

from dataset.arguments import script_parser, whole
from engine.errors import RunFailure, UsageError
from engine.io import atomic_write_text, print_rank0
from engine.registry import ROOT
from launcher.ledger import Ledger
from launcher.queue import Options
from launcher.runner import run_jobs
from reports.output import prepare_folder, write_json_result
from reports.speedrun.tracks import TRACKS, check_commands, job_file, require_machine

OWN = {"seed": "--seeds", "run_dir": "--out"}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    add = parser.add_argument
    add("track", choices=sorted(TRACKS), help="what is run")
    add("--seeds", type=whole, nargs="+", metavar="N", help="default: the track's (0 1 2, or 0)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further overrides: then it is a track of your own")
    add("--out", type=Path, metavar="DIR", help="folder of the runs; default: .out/speedruns/TRACK-TIME")
    add("--results", type=Path, default=ROOT / "docs/results", metavar="DIR", help="default: docs/results")
    add("--dry-run", action="store_true", help="print the commands and exit")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Run and record. Raises: UsageError, RunFailure."""
    track = TRACKS[args.track]
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
    folder = (args.out or Path(".out/speedruns") / f"{track.name}-{now}").absolute()
    seeds = args.seeds or track.seeds
    if twice := [seed for seed in seeds if list(seeds).count(seed) > 1]:
        raise UsageError(f"--seeds names {twice[0]} twice: every seed is one run")
    for word in args.set:
        if (key := word.lstrip("+-").partition("=")[0]) in OWN:
            raise UsageError(f"--set {word}: the track gives {key} itself: use {OWN[key]}")
    commands = track.commands(seeds, folder, args.set)
    check_commands(commands)
    if args.dry_run:
        for words in commands.values():
            print_rank0(shlex.join(words))
        return 0
    require_machine(track)
    jobs = folder / "jobs.txt"
    if jobs.exists():
        raise UsageError(f"{folder} holds a speedrun already: name another folder with --out")
    prepare_folder(folder)
    atomic_write_text(jobs, job_file(commands))
    if code := run_jobs(Ledger(jobs), Options(cwd=Path.cwd(), logs=folder / "logs")):
        print_rank0(f"no record: the logs are in {folder / 'logs'}")
        return code
    from reports.speedrun.record import add_record, make_record, row

    record = make_record(track, commands, {seed: folder / f"seed_{seed}" for seed in commands})
    write_json_result(folder / "record.json", record)
    print_rank0(row(record).rstrip())
    if args.set:
        print_rank0("--set: a track of your own is not added to the table")
    else:
        add_record(record, args.results)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 a run failed, 2 unusable, 3 stopped by a signal."""
    try:
        return run(parse(argv))
    except (UsageError, RunFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    execute(main)
