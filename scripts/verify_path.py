"""Review the training path of a job, a recipe, a command or a finished run.

    python scripts/verify_path.py jobs-trm.txt                          # every job of a file
    python scripts/verify_path.py jobs-trm.txt --job sudoku_4x4         # one of them
    python scripts/verify_path.py --all                                 # job files, recipes, documented commands
    python scripts/verify_path.py -- python pretrain.py lr=1e-3         # any command
    python scripts/verify_path.py --script pretrain.py --config-name cfg_pretrain lr=1e-3
    python scripts/verify_path.py --checkpoint checkpoints/demo/sudoku_4x4

Static checks read code and configs only; --dynamic also builds a tiny instance of each config and observes it, --data
reads the data sets. Exit 0: nothing failed; 1: something did; 2: the command cannot be used.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine.errors import UsageError  # noqa: E402
from engine.io import atomic_write_text  # noqa: E402
from verification import report as form  # noqa: E402
from verification.finding import Finding, Report  # noqa: E402
from verification.source import Repo  # noqa: E402
from verification.static import verify_all, verify_command, verify_file  # noqa: E402


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments; `command` is what stands behind `--`, `overrides` what follows --script."""
    argv, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(
        prog="verify_path.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="a job file (with --script: overrides)")
    parser.add_argument("--job", help="only the job of this id")
    parser.add_argument("--line", type=int, help="only the job at this line")
    parser.add_argument("--all", action="store_true", help="without a job file: everything in the repository")
    parser.add_argument(
        "--status", choices=("pending", "any"), default="any", help="pending: leave out done and failed jobs"
    )
    parser.add_argument("--script", help="an entry script, with --config-name and overrides")
    parser.add_argument("--config-name", help="for --script")
    parser.add_argument("--checkpoint", help="a run directory: its stored config against today's code")
    parser.add_argument("--static", action="store_true", help="static checks only (the default)")
    parser.add_argument("--dynamic", action="store_true", help="also observe a tiny instance of each config")
    parser.add_argument("--data", action="store_true", help="also read the data sets")
    parser.add_argument("--json", metavar="OUT", help="write JSON (- for the screen)")
    parser.add_argument("--markdown", metavar="OUT", help="write the Markdown page")
    parser.add_argument("--strict", action="store_true", help="a warning counts as a failure")
    parser.add_argument("--verbose", action="store_true", help="also print what passed and what was skipped")
    parser.add_argument("--root", default=str(ROOT), help="another copy of the repository")
    options = parser.parse_args(argv)
    options.command = command
    return options


def collect(options: argparse.Namespace) -> list[Report]:
    """The reports that the arguments ask for. Raises UsageError."""
    root = Path(options.root).resolve()
    if not (root / "config").is_dir():
        raise UsageError(f"--root {root} has no config/: expected a copy of the repository")
    if options.command:
        return [verify_command(options.command, root=root, data=options.data, job=" ".join(options.command))]
    if options.script:
        name = [f"--config-name={options.config_name}"] if options.config_name else []
        words = ["python", options.script, *name, *options.words]
        return [verify_command(words, root=root, data=options.data, job=" ".join(words))]
    if options.checkpoint:
        return [checkpoint(Path(options.checkpoint), root, options.data)]
    if options.words:
        pending = options.status == "pending"
        repo = Repo(root)
        return [
            report
            for name in options.words
            for report in verify_file(
                name, root=root, job=options.job, line=options.line, pending=pending, data=options.data, repo=repo
            )
        ]
    if options.all:
        return verify_all(root, data=options.data)
    raise UsageError("name a job file, --all, --script, --checkpoint, or a command after --")


def checkpoint(run: Path, root: Path, data: bool) -> Report:
    """A finished run against what its command means today. Raises UsageError where there is no run."""
    from verification.chain import build_chain
    from verification.static import report_of

    run = run.parent if not (run / "config.yaml").is_file() and (run.parent / "config.yaml").is_file() else run
    first = (
        (run / "config.yaml").read_text(encoding="utf-8").partition("\n")[0] if (run / "config.yaml").is_file() else ""
    )
    if "{" not in first:
        raise UsageError(f"{run} is no run directory: expected e.g. checkpoints/PROJECT/RUN with a config.yaml")
    header = json.loads(first[first.index("{") :])
    overrides = (
        (run / "overrides.txt").read_text(encoding="utf-8").splitlines() if (run / "overrides.txt").is_file() else []
    )
    stored = (run / "config.yaml").read_text(encoding="utf-8")
    match = re.search(r"^script: *(\S+\.py)", stored, re.MULTILINE)
    if match is None:
        raise UsageError(f"{run}/config.yaml names no script")
    script = match[1]
    words = [
        "python",
        script,
        f"--config-name={header['config_name']}",
        *[o.removeprefix("- ") for o in overrides if o.strip()],
    ]
    chain = build_chain(words, Repo(root), job=str(run))
    chain.checkpoint, chain.with_data = run, data
    return report_of(chain)


def observe(reports: list[Report], root: Path) -> None:
    """Add what the dynamic probes see of every composed config; equal configs are observed once."""
    from verification.probes import probe  # loads torch

    for report in reports:
        chain = report.subject
        if chain is None or chain.resolved is None or chain.script is None:
            continue
        found = probe(chain.resolved, entry=chain.script.stem, root=root, overrides=chain.overrides)
        report.findings += [Finding(**{**vars(one), "job": report.job}) for one in found]


def run(argv: list[str]) -> int:
    """The exit code. Raises UsageError."""
    options = parse(argv)
    reports = collect(options)
    if options.dynamic:
        observe(reports, Path(options.root).resolve())
    if options.json:
        content = form.as_json(reports)
        if options.json == "-":
            sys.stdout.write(content)
        else:
            atomic_write_text(options.json, content)
    if options.markdown:
        atomic_write_text(options.markdown, form.markdown(reports))
    if options.json != "-":
        sys.stdout.write(form.text(reports, verbose=options.verbose))
    return int(any(report.failed(options.strict) for report in reports))


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
