"""Report what this machine has for training and what it lacks; paste the output into bug reports.

    python scripts/doctor.py
    python scripts/doctor.py --quick            # leaves out torch.compile, which takes seconds to try
    python scripts/doctor.py --json > doctor.json

Versions, device and dtype, attention kernels, compiler, disk, data sets, extras. It runs even if nothing is installed
yet. Exit code 0: a run has everything it needs; 1: the PROBLEM lines at the end say what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    # not dataset.arguments, which needs packages that may be missing
    parser = argparse.ArgumentParser(
        prog="doctor.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="do not try torch.compile [switch]")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON [switch]")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Examine the machine and print; return the exit code."""
    from reports.machine.doctor import as_json, as_text, examine

    facts = examine(compiler=not args.quick)
    print(as_json(facts) if args.json else as_text(facts))
    return int(bool(facts["problems"]))


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036  before an import that an older Python cannot read
        print(f"error: Loopforge needs Python 3.11 or newer, this is {sys.version.split()[0]}", file=sys.stderr)
        raise SystemExit(2)

    from engine.cli.console import begin, execute

    arguments = parse()
    begin(output_is_all=True)
    execute(lambda: main(arguments))
