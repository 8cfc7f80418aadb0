"""Chaos over the entry scripts: the smallest command of each, seeded faults, one JSON result for each.

    python -m tests.chaos --faults 30 --seed 0 --out DIR              # every script whose libraries are installed
    python -m tests.chaos --scripts train_animal --out DIR            # where peft and scikit-learn are
    python -m tests.chaos --scripts pretrain --kinds data --out DIR   # nothing to begin with: it builds its data
    python -m tests.chaos --scripts scripts/run_jobs --out DIR        # two jobs in a queue
    python -m tests.chaos --table --out DIR                           # the table over all results in DIR

About four minutes of one core for all; everything else happens in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from chaos.faults import KINDS, plan
from chaos.result import as_table, measure
from chaos.storm import Command
from reports.tables import Column, Table
from tests.chaos.commands import COMMANDS, begin

SCRIPTS = [script for script in COMMANDS if "/" not in script]


def storm(script: str, faults: int, seed: int, kinds: list[str], ranks: int, out: Path) -> bool:
    """One script; its result goes to `out`. Whether nothing was lost."""
    command = Command.of(["python", f"{script}.py", *COMMANDS[script].split()], ranks)
    attempts = plan(seed, faults, kinds or command.default_kinds(), ranks)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        made = begin(script, Path(folder) / "begin") if "data" not in kinds else None
        result = measure(command, attempts, seed, made)
    out.mkdir(parents=True, exist_ok=True)
    name = " ".join([f"{Path(script).name}", *kinds, *([f"{ranks} ranks"] if ranks > 1 else [])])
    (out / f"{name}.json").write_text(json.dumps(result, indent=1))
    print(f"{name}\n{as_table(result)}\n", flush=True)
    return not any(attempt["problems"] for attempt in result["attempts"])


def table(out: Path) -> str:
    """A row for each result, a column for each kind: faults that came to pass; and the sums."""
    results = {file.stem: json.loads(file.read_text()) for file in sorted(out.glob("*.json"))}
    kinds = [kind for kind in KINDS if any(kind in each["kinds"] for each in results.values())]
    shown = Table([*map(Column, ("command", *kinds, "all", "ended otherwise", "launches", "CPU seconds"))])
    sums: Counter[str] = Counter()
    for name, result in results.items():
        row = {kind: result["kinds"].get(kind, {}).get("struck", 0) for kind in kinds}
        row |= {"all": sum(row.values()), "lost": sum(bool(each["problems"]) for each in result["attempts"])}
        row |= {"launches": result["launches"], "cpu": round(result["cpu_s"])}
        sums.update(row)
        shown.add(name, *row.values())
    shown.add("all", *sums.values())
    return shown.markdown()


def main(argv: list[str] | None = None) -> int:
    """Storm over the scripts asked for; 1 where anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scripts", nargs="+", default=SCRIPTS, choices=list(COMMANDS))
    parser.add_argument("--faults", type=int, default=30, metavar="N", help="for each script")
    parser.add_argument("--kinds", nargs="+", default=[], choices=list(KINDS))
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--table", action="store_true", help="only show what is in --out")
    args = parser.parse_args(argv)
    ok = args.table or all(
        [storm(script, args.faults, args.seed, args.kinds, args.ranks, args.out) for script in args.scripts]
    )
    print(table(args.out))
    return int(not ok)


if __name__ == "__main__":
    sys.exit(main())
