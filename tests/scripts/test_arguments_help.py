"""--help of every script and builder: type, default and meaning of each option, in both spellings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from dataset.arguments import OneLineParser, positive
from tests.conftest import ROOT, run_forked

COMMANDS = (
    *sorted(f"scripts.{path.stem}" for path in (ROOT / "scripts").glob("[a-z]*.py")),
    *sorted(f"dataset.{path.stem}" for path in (ROOT / "dataset").glob("build_*.py")),
)


def check(command: str) -> None:
    """Runs in a forked process: every parser that `COMMAND --help` uses is examined before it prints."""
    import runpy
    import sys

    def printed(self: argparse.ArgumentParser, *_: Any) -> None:
        text = " ".join(self.format_help().split())
        for action in self._actions:
            if action.help == argparse.SUPPRESS:
                continue
            line = " ".join(self._get_formatter()._format_action(action).split())
            assert (action.help or "").strip(), f"{action.dest} says nothing"
            assert line in text
            if not action.option_strings or isinstance(action, argparse._HelpAction):
                continue
            assert line.endswith("]"), line
            assert "default" in line or "[switch]" in line or "required]" in line, line
            for flag in action.option_strings:
                assert flag.replace("-", "_").replace("__", "--", 1) in line, line
                assert not flag.startswith("---")
        print(f"examined {len(self._actions)}")

    argparse.ArgumentParser.print_help = printed  # type: ignore[method-assign]
    sys.argv = [command, "--help"]
    runpy.run_module(command, run_name="__main__")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_type_default_and_meaning(command: str) -> None:
    done = run_forked(check, command)
    assert done.code == 0, done.output
    assert "examined" in done.output


def test_the_words() -> None:
    parser = OneLineParser()
    parser.add_argument("--how-many", type=positive, metavar="N", help="of them")
    parser.add_argument("--where", type=Path, nargs="+", required=True, help="places")
    parser.add_argument("--share", type=float, default=0.5, help="100 %% is all")
    parser.add_argument("--loud", action="store_true", help="shout")
    text = " ".join(parser.format_help().split())
    text = text.replace("--how-many, --how_many N", "--how-many N, --how_many N")  # as Python 3.13 writes it
    assert "--how-many N, --how_many N of them [whole number of at least 1; default: none]" in text
    assert "places [several: path; required]" in text
    assert "100 % is all [number; default: 0.5]" in text
    assert "--loud shout [switch]" in text
