"""Estimate the cost of a run before it is started: parameters, memory, hours, FLOPs, disk.

    python scripts/estimate.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu
    python scripts/estimate.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu --find-batch-size
    python scripts/estimate.py lr=1e-3 global_batch_size=64 --json estimate.json
    python scripts/estimate.py --probe-steps 20 -- python train.py --dataset=shakespeare_char

The command line is that of the entry script, or the whole command after `--`. A few real steps are taken (in one
process), and nothing is written to the run directory; only missing generated data are built, as in a launch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import as_typed, begin, execute, remember, run_command

if __name__ == "__main__":
    begin()

from dataset.arguments import OneLineParser, positive
from engine.cli.files import locate
from engine.cli.recipes import check_recipe, config_name_of, no_config, read_recipe, search_folders
from engine.cli.resolve import ANSWERS, resolve
from engine.errors import UsageError
from engine.registry import ROOT, Family, family_of
from launcher.command import parse as parse_command

CONFIG = ROOT / "config"


def parser() -> argparse.ArgumentParser:
    """The script's own arguments; all others belong to the entry script."""
    own = OneLineParser(
        prog="estimate.py",
        description=(__doc__ or "").partition("\n")[0],
        allow_abbrev=False,
        epilog="Everything else is the command line of the entry script: --config-name=..., key=value, --key value.",
    )
    own.add_argument("--entry", help="the entry script, e.g. pretrain; default: the one that the config is for")
    own.add_argument("--find-batch-size", action="store_true", help="try batch sizes, print a table, name the best")
    own.add_argument(
        "--memory-limit", metavar="SIZE", help="CPU memory a trial may take, e.g. 8GiB; default: 4/5 of what is free"
    )
    own.add_argument("--probe-steps", type=positive, default=8, metavar="N", help="steps to time; default: 8")
    own.add_argument("--probe-seconds", type=positive, default=20, metavar="N", help="about how long; default: 20")
    own.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    return own


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """(own arguments, the entry script's command line). Raises: SystemExit 2 for contradictory arguments."""
    own = parser()
    words = sys.argv[1:] if argv is None else argv
    end = words.index("--") if "--" in words else len(words)
    args, rest = own.parse_known_args(words[:end])
    if end < len(words):
        command = parse_command(words[end + 1 :])
        if command.script is None or args.entry:
            own.error(f"after -- give the whole command, python SCRIPT.py ...{' and no --entry' * bool(args.entry)}")
        args.entry, rest = command.script, [*rest, *command.arguments]
    if rest and rest[0] == words[0] and not rest[0].startswith(("-", "+", "~")) and "=" not in rest[0]:
        own.error(f"unexpected word {rest[0]!r}: a config is --config-name=..., and -- precedes a whole command")
    if {"-m", "--multirun"} & set(rest):
        own.error("-m starts several jobs: estimate one of them")
    if answer := next((word for word in rest if word.partition("=")[0] in ANSWERS), None):
        own.error(f"{answer} only prints: give it to the entry script")
    return args, rest


def entry_of(rest: list[str]) -> str:
    """The entry script of the named config (pretrain if none is named)."""
    name = config_name_of(rest) or "cfg_pretrain"
    return Path(read_recipe(search_folders(rest, CONFIG), name).script or "pretrain").stem


def composed(family: Family, rest: list[str]) -> tuple[str, Any]:
    """(recipe, checked config) of the entry script's command; of the run that it resumes. Raises: UsageError."""
    name = config_name_of(rest) or family.config_name
    folders = search_folders(rest, CONFIG)
    if locate(folders, name) is None:
        raise UsageError(no_config(name, folders))
    check_recipe(folders, name, family.entry)
    trace = resolve(ROOT / f"{family.entry}.py", rest, root=ROOT, cwd=Path.cwd())
    remember(trace.typed)
    if trace.resumes and trace.resolved is not None:
        from engine.run.decision import resumed_config  # imports torch

        return resumed_config(trace.resolved, trace.overrides, trace.choices, family)
    for problem in trace.problems.values():
        raise UsageError(as_typed(problem))
    return trace.config_name, trace.config


def main(argv: list[str] | None = None) -> int:
    """Compose like the entry script, then estimate; return the exit code."""
    args, rest = parse(argv)

    def command() -> None:
        from reports.cost.report import estimate

        entry = Path(args.entry).stem if args.entry else entry_of(rest)
        family = family_of(entry, f"--entry {entry}")
        child = [sys.executable, str(Path(__file__).resolve()), *rest, "--entry", entry]
        child += ["--probe-steps", str(args.probe_steps), "--probe-seconds", str(args.probe_seconds)]
        name, config = composed(family, rest)
        estimate(config, family.build, args, child, name)

    return run_command(command)


if __name__ == "__main__":
    execute(main)
