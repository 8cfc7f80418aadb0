"""The storm: damaged files and odd commands, seeded; prints every fault and ends with their number.

    python -m tests.storm --commands 300 --files 300 --seed 0

A part that is left out is not run. About ten minutes on one quiet core; everything happens in a temporary folder.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.commands import begin
from tests.storm import files, preload


def prepare(base: Path) -> Path:
    """Two small data sets in `base`/data, one of puzzles and one of text."""
    for script in ("pretrain", "train"):
        begin(script, base)
    return base


def odd_commands(count: int, seed: int, *, whole: bool) -> Iterator[str]:
    """A line for each mutated command that does not end well."""
    from tests.storm import commands

    with tempfile.TemporaryDirectory() as folder:
        for script, words in commands.commands(seed, count):
            outcome = commands.execute(script, words, Path(folder), whole=whole)
            if fault := commands.judge(outcome):
                yield f"{script}.py {' '.join(words)!r}: {fault}: {outcome.last[:300]}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=(__doc__ or "").partition("\n")[0])
    for part in ("commands", "files"):
        parser.add_argument(f"--{part}", type=int, default=0, metavar="N")
    parser.add_argument("--whole", action="store_true", help="commands train, too, not only up to the built plan")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the parts that are asked for; 1 where there was a fault."""
    args = parser().parse_args(argv)
    preload()
    faults = 0
    base = Path(tempfile.mkdtemp(prefix="storm-"))
    try:
        prepare(base)
        parts = {
            "files": lambda: files.storm(base, base / "scratch", args.files, args.seed),
            "commands": lambda: odd_commands(args.commands, args.seed, whole=args.whole),
        }
        for part, storm in parts.items():
            count, began, faults_seen = getattr(args, part), time.monotonic(), 0
            if not count:
                continue
            for line in storm():
                faults_seen += 1
                print(line, flush=True)
            print(f"{part}: {count} done, {faults_seen} fault(s), {time.monotonic() - began:.0f} s", flush=True)
            faults += faults_seen
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
