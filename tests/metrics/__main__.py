"""Measures how large the house is, and how long the way from argv to the optimizer is.

    python -m tests.metrics                                             # this checkout, as a table
    python -m tests.metrics --tree ../before --json before.json         # another commit, checked out elsewhere
    python -m tests.metrics --before before.json --markdown house.md    # two columns

The way is that of one training step of `pretrain.py` on generated 4x4 Sudoku, followed by Python's profiler
(`tests/metrics/trace.py`), about 20 s. The rest is read off the sources.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.metrics import sources
from tests.metrics.trace import MARK

HERE = Path(__file__).resolve().parents[2]
COMMAND = ["--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu", "max_steps=1", f"lr={MARK}"]


def measure_way(root: Path) -> dict[str, Any]:
    """The result of `trace.py`, after an untraced run that builds the data. Raises CalledProcessError."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "trace.json"
        for number, program in enumerate(
            (
                [str(root / "pretrain.py")],
                [str(Path(__file__).with_name("trace.py")), str(root), str(result), "pretrain.py"],
            )
        ):
            argv = [sys.executable, *program, *COMMAND, f"run_name=run_{number}", "project_name=metrics"]
            done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(argv)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return json.loads(result.read_text())


def by_package(files: list[str]) -> str:
    counts: dict[str, int] = {}
    for file in files:
        package = file.split("/")[0] if "/" in file else "root"
        counts[package] = counts.get(package, 0) + 1
    return ", ".join(f"{package} {number}" for package, number in sorted(counts.items(), key=lambda item: -item[1]))


def measure(root: Path) -> dict[str, str]:
    """Row of the table -> its value, in reading order."""
    rows: dict[str, str] = {}
    total, tests = sources.Size(), sources.Size()
    for name, size in sources.sizes(root).items():
        rows[f"{name}: files, lines, lines of code"] = f"{size.files}, {size.lines:,}, {size.code:,}"
        if name.startswith("tests"):
            tests += size
        else:
            total += size
    rows["all but tests: files, lines, lines of code"] = f"{total.files}, {total.lines:,}, {total.code:,}"
    rows["all tests: files, lines, lines of code"] = f"{tests.files}, {tests.lines:,}, {tests.code:,}"
    for script in ("pretrain.py", "train.py"):
        rows[f"{script}: lines"] = str(len((root / script).read_text().splitlines()))
    way = measure_way(root)
    rows["argv to optimizer step: files whose functions ran"] = f"{len(way['ran'])} ({by_package(way['ran'])})"
    rows["argv to optimizer step: modules of ours imported"] = str(len(way["imported"]))
    rows["argv to optimizer step: files that held the key `lr`"] = f"{len(way['marked'])} ({by_package(way['marked'])})"
    rows["argv to optimizer step: files called with the config"] = str(len(way["config_files"]))
    rows["argv to optimizer step: returns with the config to a file already left"] = str(way["config_returns"])
    for label, lazy in (("imports at the top of modules", False), ("all imports", True)):
        circles = sources.circles(sources.import_graph(root, lazy=lazy))
        sizes = f" (of {', '.join(str(len(circle)) for circle in circles)} modules)" if circles else ""
        rows[f"import circles, {label}"] = f"{len(circles)}{sizes}"
    exceptions = sources.formatter_exceptions(root)
    rows["`fmt: skip` and `fmt: off`"] = (
        f"{sum(exceptions.values())} ({', '.join(f'{k} {v}' for k, v in exceptions.items())})"
    )
    for family, (own, shared) in sources.family_costs(root).items():
        rows[
            f"{family} in verification: lines of its verify.py, rules.py and probes, lines about it in verification/"
        ] = f"{own}, {shared}"
    return rows


def table(columns: dict[str, dict[str, str]]) -> str:
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {row} | {' | '.join(column.get(row, '-') for column in columns.values())} |" for row in rows]
    return "\n".join(lines) + "\n"


def commit(root: Path) -> str:
    done = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "no commit"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.metrics", description=__doc__.split("\n")[0])
    parser.add_argument("--tree", type=Path, default=HERE, help="the checkout to measure (default: this one)")
    parser.add_argument("--json", type=Path, help="write commit and rows to this file")
    parser.add_argument("--before", type=Path, help="a file of --json, shown as the first column")
    parser.add_argument("--markdown", type=Path, help="write the table to this file; text above its first | is kept")
    options = parser.parse_args()
    root = options.tree.resolve()
    name, rows = commit(root), measure(root)
    columns = {f"{name}": rows}
    if options.before:
        before = json.loads(options.before.read_text())
        columns = {f"before: {before['commit']}": before["rows"], f"after: {name}": rows}
    print(table(columns), end="")
    if options.json:
        options.json.write_text(json.dumps({"commit": name, "rows": rows}, indent=1) + "\n")
    if options.markdown:
        kept = options.markdown.read_text().split("\n| | ")[0] + "\n" if options.markdown.exists() else ""
        options.markdown.write_text(kept + table(columns))


if __name__ == "__main__":
    main()
