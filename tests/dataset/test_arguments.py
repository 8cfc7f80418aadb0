"""The parser that all scripts and builders share."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataset.arguments import BuilderParser, OneLineParser, run_builder
from engine.io import UsageError
from tests.conftest import ROOT

FILES = [path for folder in ("scripts", "dataset") for path in sorted((ROOT / folder).glob("*.py"))]
PLAIN = "doctor.py"
"""It has its own parser: it must run where the packages that ours needs are missing."""
COMMANDS = [path for path in FILES if '__name__ == "__main__"' in path.read_text() and path.name != PLAIN]


class Captured(Exception):
    """Ends a command as soon as its parser is complete."""


def parser_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> OneLineParser:
    module = importlib.import_module(f"{path.parent.name}.{path.stem}")
    parsers: list[OneLineParser] = []

    def stop(self: OneLineParser, *args: object) -> Iterator[object]:
        parsers.append(self)
        raise Captured

    monkeypatch.setattr(OneLineParser, "parse_known_args", stop)
    make = getattr(module, "parse", None) or module.parser
    try:
        return make([]) if make.__name__ == "parse" else make()
    except Captured:
        return parsers[0]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_command_takes_both_spellings_of_every_flag(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of(path, monkeypatch)
    for flag in [name for name in parser._option_string_actions if name.startswith("--")]:
        assert parser._registered_spelling("--" + flag[2:].replace("-", "_") + "=x_y-z") == f"{flag}=x_y-z"


def test_no_command_has_a_parser_of_its_own() -> None:
    plain = re.compile(r"argparse\.ArgumentParser\(|\(argparse\.ArgumentParser\)")
    assert [path.name for path in FILES if plain.search(path.read_text())] == [PLAIN, "arguments.py"]


@pytest.fixture
def parser() -> OneLineParser:
    made = OneLineParser(prog="x")
    made.add_argument("place", type=Path, nargs="?")
    made.add_argument("--num-samples", type=int)
    made.add_argument("--out", type=Path)
    made.add_argument("--input", type=Path, nargs="+")
    return made


def test_a_flag_of_several_values_given_twice_has_all_of_them(parser: OneLineParser) -> None:
    parsed = parser.parse_args(["--input", "a", "b", "--num-samples=1", "--input", "c", "--num-samples=2"])
    assert (parsed.input, parsed.num_samples) == ([Path("a"), Path("b"), Path("c")], 2)


def test_values_keep_their_underscores(parser: OneLineParser) -> None:
    parsed = parser.parse_args(["a_b", "--num_samples", "2", "--out=c_d"])
    assert (parsed.place, parsed.num_samples, parsed.out) == (Path("a_b"), 2, Path("c_d"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num_sample", "2"], "there is no flag --num_sample: did you mean '--num-samples'?"),
        (["--num-sam=2"], "there is no flag --num-sam: did you mean '--num-samples'?"),
        (["a", "b"], "unexpected argument 'b'"),
        (["--num_samples", "many"], "argument --num-samples: invalid int value: 'many'"),
    ],
)
def test_mistakes_are_one_line(parser: OneLineParser, argv: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {message} (--help shows the arguments)\n"


def test_a_builder_raises_instead() -> None:
    with pytest.raises(UsageError, match="there is no flag --outputdir"):
        BuilderParser("build_a_dataset", None).parse_args(["--outputdir=x"])


def test_a_builder_without_memory_ends_in_one_line(capsys) -> None:
    def build() -> None:
        raise MemoryError("Unable to allocate 1.99 TiB")

    assert run_builder(build) == 1
    assert capsys.readouterr().err == (
        "error: this machine has too little memory for the data (Unable to allocate 1.99 TiB): ask for fewer of them\n"
    )


def test_tilde_is_the_home_folder(parser: OneLineParser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    parsed = parser.parse_args(["~/a", "--out=~/b"])
    assert (parsed.place, parsed.out) == (Path("/home/someone/a"), Path("/home/someone/b"))
    assert parser.parse_args(["--out=~nobody-of-that-name/b"]).out == Path("~nobody-of-that-name/b")
