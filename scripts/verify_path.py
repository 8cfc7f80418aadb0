"""Verify the training path of a job, a recipe, a command or a finished run.

    python scripts/verify_path.py jobs-trm.txt                          # every job of a file
    python scripts/verify_path.py jobs-trm.txt --job sudoku_4x4         # one of them
    python scripts/verify_path.py --all                                 # job files, recipes, documented commands
    python scripts/verify_path.py -- python pretrain.py lr=1e-3         # any command
    python scripts/verify_path.py --script pretrain.py --config-name cfg_pretrain lr=1e-3
    python scripts/verify_path.py --checkpoint checkpoints/demo/sudoku_4x4

Rules check names and values, probes run a tiny instance of each config; --static omits the probes, --dynamic adds the
deeper ones, --data reads the data sets.
Exit 0: nothing failed; 1: something did; 2: the command cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, print_data

if __name__ == "__main__":
    begin(output_is_all=True)

from dataset.arguments import OneLineParser
from engine.errors import UsageError
from engine.io import atomic_write_text
from engine.registry import ROOT
from verification import report as form
from verification.finding import Report
from verification.static import verify_all, verify_command, verify_file, verify_run


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the arguments; `command` holds the words after `--`, `overrides` those after --script."""
    argv, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = OneLineParser(
        prog="verify_path.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="a job file (with --script: overrides)")
    parser.add_argument("--job", metavar="ID", help="only the job of this id")
    parser.add_argument("--line", type=int, metavar="N", help="only the job at this line")
    parser.add_argument("--all", action="store_true", help="without a job file: everything in the repository")
    parser.add_argument(
        "--status", choices=("pending", "any"), default="any", help="pending: leave out done and failed jobs"
    )
    parser.add_argument("--script", type=Path, metavar="FILE", help="an entry script, with --config-name and overrides")
    parser.add_argument("--config-name", metavar="NAME", help="the recipe, for --script")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="RUN", help="a run directory: its stored config against today's code"
    )
    parser.add_argument("--static", action="store_true", help="judge by the rules only: nothing is built or trained")
    parser.add_argument("--dynamic", action="store_true", help="also run the deeper probes (DYN7xx) of each config")
    parser.add_argument("--data", action="store_true", help="also read the data sets")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write JSON (- for the screen)")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the Markdown page (data sets as the catalogue has them)"
    )
    parser.add_argument("--summary", action="store_true", help="with --markdown: one table instead of the whole page")
    parser.add_argument("--check", action="store_true", help="with --markdown: fail if the page is stale")
    parser.add_argument("--strict", action="store_true", help="a warning counts as a failure")
    parser.add_argument("--verbose", action="store_true", help="also print what passed and what was skipped")
    parser.add_argument(
        "--root", type=Path, default=ROOT, metavar="DIR", help="a copy of the repository; default: this one"
    )
    options = parser.parse_args(argv)
    options.command = command
    return options


def collect(options: argparse.Namespace, root: Path) -> list[Report]:
    """The reports that the arguments select. Raises: UsageError."""
    how = {
        "with_data": options.data,
        "local_data": not options.markdown,
        "probes": not options.static,
        "dynamic": options.dynamic,
    }
    words = options.command
    if options.script:
        name = [f"--config-name={options.config_name}"] if options.config_name else []
        words = ["python", str(options.script), *name, *options.words]
    if words:
        report = verify_command(words, root=root, job=" ".join(words), **how)
        if report.verdict == "SKIP":
            raise UsageError(f"{' '.join(words)} launches nothing of ours: expected e.g. python pretrain.py lr=1e-3")
        return [report]
    if options.checkpoint:
        return [verify_run(options.checkpoint, root=root, **how)]
    if options.words:
        some = {"job": options.job, "line": options.line, "pending": options.status == "pending"}
        return [one for name in options.words for one in verify_file(name, root=root, **how, **some)]
    if options.all:
        return verify_all(root, **how)
    raise UsageError("name a job file, --all, --script, --checkpoint, or a command after --")


def write_file(path: Path, text: str) -> None:
    """Write a file. Raises: UsageError if it cannot be written."""
    from reports.output import writing  # loads a library of pictures

    with writing(path, "file"):
        atomic_write_text(path, text)


def page(reports: list[Report], out: Path, check: bool, summary: bool) -> bool:
    """Write the Markdown page (whole or as a summary); with `check` only return whether it is up to date."""
    if not check:
        write_file(out, form.summary(reports) if summary else form.markdown(reports))
        return True
    if out.is_file() and out.read_text(encoding="utf-8") in (form.summary(reports), form.markdown(reports)):
        return True
    sys.stdout.write(f"{out} is stale: run python scripts/verify_path.py --all --summary --markdown {out}\n")
    return False


def run(argv: list[str]) -> int:
    """Verify and print; return the exit code. Raises: UsageError."""
    options = parse(argv)
    root = options.root.resolve()
    if not (root / "config").is_dir():
        raise UsageError(f"--root {root} has no config/: expected a copy of the repository")
    if (options.check or options.summary) and not options.markdown:
        raise UsageError("--check and --summary are about a page: name it with --markdown PAGE")
    if options.data and options.markdown:
        raise UsageError("--markdown does not depend on the data that are here: leave out --data")
    reports = collect(options, root)
    if options.json:
        content = form.as_json(reports)
        if options.json == Path("-"):
            print_data(content)
        else:
            write_file(options.json, content)
    fresh = page(reports, options.markdown, options.check, options.summary) if options.markdown else True
    if options.json != Path("-"):
        sys.stdout.write(form.text(reports, verbose=options.verbose, brief=options.check))
    return int(not fresh or any(report.failed(options.strict) for report in reports))


def main() -> int:
    """Return the exit code; errors are printed in one line."""
    try:
        return run(sys.argv[1:])
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    execute(main)
