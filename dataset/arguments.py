"""The command-line parser of all scripts and builders: mistakes in one line, both spellings of a flag, `~` in paths."""

from __future__ import annotations

import argparse
import copy
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from engine.io import RunFailure, UsageError, did_you_mean, user_path

KINDS = {
    "int": "whole number",
    "whole": "whole number",
    "float": "number",
    "Path": "path",
    "positive": "whole number of at least 1",
    "pattern": "regular expression",
}
"""The type that --help shows, by the name of an argument's `type` function; anything else is text."""


class _Help(argparse.HelpFormatter):
    """Shows both spellings of each flag, its type, and its default unless the help text mentions it."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        dashed = [flag for flag in action.option_strings if "-" in flag.lstrip("-")]
        shown.option_strings = [*action.option_strings, *(f"--{flag[2:].replace('-', '_')}" for flag in dashed)]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: argparse.Action) -> str:
        meaning = action.help or ""
        if not action.option_strings or isinstance(action, argparse._HelpAction):
            return meaning
        if action.nargs == 0:
            return f"{meaning} [switch]"
        kind = "choice" if action.choices else KINDS.get(getattr(action.type, "__name__", ""), "text")
        several = "several: " if action.nargs in ("+", "*", 2) else ""
        has_default = action.default not in (None, []) and action.default is not argparse.SUPPRESS
        default = (
            "" if "default" in meaning else f"; default: {action.default if has_default else 'none'}".replace("%", "%%")
        )
        return f"{meaning} [{several}{kind}{'; required' if action.required else default}]"


class OneLineParser(argparse.ArgumentParser):
    """An argparse parser for which `--a-b` is `--a_b`, flags are not abbreviated, and `~` is expanded in every path.

    A mistake is reported in one line that names the nearest flag; the process then exits with 2.
    """

    def __init__(self, **options: Any) -> None:
        base = options.pop("formatter_class", argparse.HelpFormatter)
        formatter = type("Help", (_Help, base), {})
        super().__init__(**{"allow_abbrev": False, "formatter_class": formatter, **options})
        self.register("type", Path, user_path)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As in argparse, but a repeated flag of several values keeps the values of all its occurrences."""
        if names[0].startswith("-") and options.get("nargs") == "+":
            options.setdefault("action", "extend")
        return super().add_argument(*names, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = [self._registered_spelling(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(words, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(self._unknown(rest))
        return parsed

    def _registered_spelling(self, word: str) -> str:
        """A flag with dashes and underscores as it was added; any other word unchanged."""
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        plain = name.replace("_", "-")
        registered = next((flag for flag in self._option_string_actions if flag.replace("_", "-") == plain), name)
        return registered + equals + value

    def _unknown(self, rest: Sequence[str]) -> str:
        flag = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
        if flag is None:
            return f"unexpected argument {rest[0]!r}"
        known = [name for name in self._option_string_actions if name.startswith("--")]
        return f"there is no flag {flag}: {did_you_mean(flag.replace('_', '-'), known)}"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help shows the arguments)\n")


def script_parser(file: str, doc: str | None) -> OneLineParser:
    """The parser of a script: named after its file, described by the docstring, its usage below the arguments."""
    description, _, usage = (doc or "").partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    return OneLineParser(prog=Path(file).name, description=description, epilog=usage, formatter_class=raw)


class BuilderParser(OneLineParser):
    """The parser of the data builder `python -m dataset.NAME`. A mistake is a UsageError, which its `main` reports."""

    def __init__(self, name: str, description: str | None) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"python -m dataset.{name}", description=description, formatter_class=raw)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def run_builder(build: Callable[[], None]) -> int:
    """Call `build` and return the exit code: 0 done, 1 failure, 2 unusable command or input, 130 Ctrl-C."""
    try:
        build()
    except (UsageError, RunFailure) as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except MemoryError as error:
        what = f" ({error})" if str(error) else ""
        sys.stderr.write(f"error: this machine has too little memory for the data{what}: ask for fewer of them\n")
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {where}{error.strerror or error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written\n")
        return 130
    return 0


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 0")
    return int(text)


def pattern(text: str) -> str:
    """An argparse type: a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
    return text
