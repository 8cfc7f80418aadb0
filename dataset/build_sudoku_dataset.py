"""Build a Sudoku data set: generated puzzles with a proven single solution, or the public Sudoku CSV.

    python -m dataset.build_sudoku_dataset --size 4 --num-train 20000 --output-dir data/sudoku-4x4
    python -m dataset.build_sudoku_dataset --num-train 1000 --num-test 10000 --num-aug 1000 --min-difficulty 5 \\
        --output-dir data/sudoku-9x9-hard
    python -m dataset.build_sudoku_dataset --input sudoku-extreme/ --subsample-size 1000 --num-aug 1000 \\
        --output-dir data/sudoku-extreme-1k-aug-1000

Without --input puzzles are generated; nothing is downloaded. Scores on generated puzzles are not comparable
with published Sudoku-Extreme figures; card.json in the output folder records which of the two a data set is.
"""

from __future__ import annotations

from engine.io import begin, execute

if __name__ == "__main__":
    begin()

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # `python dataset/build_sudoku_dataset.py`: import from the repository, not from dataset/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataset.arguments import BuilderParser, run_builder
from dataset.hub import download_csv
from dataset.published import SUDOKU_EXTREME
from dataset.sudoku.build import SudokuBuild, build
from engine.io import UsageError, print_rank0

HUB_REPOSITORY = "sapientinc/sudoku-extreme"


def parser() -> argparse.ArgumentParser:
    """The command line; every flag is also accepted with underscores."""
    out = BuilderParser("build_sudoku_dataset", __doc__)
    out.add_argument(
        "--output-dir",
        type=Path,
        help="folder to create (default: data/sudoku-NxN, or named after the input)",
    )
    out.add_argument("--size", type=int, choices=(4, 6, 9), help="board size (default: 9, or what the CSV holds)")
    out.add_argument("--num-train", type=int, metavar="N", help="training puzzles to generate (default: 1000)")
    out.add_argument(
        "--num-test",
        type=int,
        metavar="N",
        help="test puzzles to generate (256), or to hold out of a single CSV",
    )
    out.add_argument(
        "--blanks",
        type=int,
        nargs=2,
        metavar=("LO", "HI"),
        help="blank cells of a generated puzzle (default: 6 10 on 4x4, 12 22 on 6x6, 30 45 on 9x9)",
    )
    out.add_argument(
        "--num-aug",
        type=int,
        default=0,
        metavar="N",
        help="augmented copies of each training puzzle (default: 0)",
    )
    out.add_argument(
        "--subsample-size",
        type=int,
        metavar="N",
        help="number of training puzzles drawn at random from the CSV; without --input the number to generate",
    )
    out.add_argument(
        "--min-difficulty",
        type=int,
        default=0,
        metavar="N",
        help="least difficulty: rating of the CSV, or guesses undone by the solver (default: 0); above 0 generated 9x9 "
        "puzzles are minimal ones, unless --blanks says how many blanks they have",
    )
    out.add_argument(
        "--input",
        type=Path,
        help="folder with train.csv and test.csv, or one file: CSV (question,answer,rating) or one board a line",
    )
    out.add_argument(
        "--test-input",
        type=Path,
        metavar="FILE",
        help="a second CSV, used only for testing, in addition to what is held out of the one in --input",
    )
    out.add_argument("--download", action="store_true", help="fetch the CSV files from the Hugging Face Hub first")
    out.add_argument(
        "--source-repo",
        metavar="REPOSITORY",
        help=f"Hub data set for --download (default: {HUB_REPOSITORY})",
    )
    out.add_argument(
        "--seed",
        type=int,
        default=0,
        help="the same seed and flags give the same data, byte for byte (default: 0)",
    )
    out.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: by cores and work); never changes the data",
    )
    out.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    return out


def _default_name(source: Path | None, size: int, downloaded: bool) -> str:
    if source is None:
        return f"sudoku-{size}x{size}"
    if not source.is_dir():
        return f"sudoku-{source.stem}"
    # A folder of other puzzles must not get the published name.
    published = downloaded or SUDOKU_EXTREME.claims_to_be(source)
    return "sudoku-extreme-full" if published else f"sudoku-{source.resolve().name}"


def plan_of(arguments: argparse.Namespace) -> SudokuBuild:
    """The build that the parsed flags describe. Raises: UsageError."""
    values = dict(vars(arguments))
    download, repository, folder = (values.pop(name) for name in ("download", "source_repo", "output_dir"))
    if download and arguments.input is not None:
        raise UsageError("--download and --input exclude each other: both say where the CSV files come from")
    if repository and not download:
        raise UsageError("--source-repo says what --download fetches: add --download, or leave it out")
    if download:
        values["input"] = download_csv(repository or HUB_REPOSITORY)
    if arguments.blanks:
        values["blanks"] = tuple(arguments.blanks)
    name = _default_name(values["input"], arguments.size or 9, download)
    return SudokuBuild(output_dir=folder or Path("data") / name, **values)


def _warnings(card: Mapping[str, Any]) -> Iterator[str]:
    """Problems of the puzzles in a file, one line each."""
    for split, seen in card.get("several_solutions", {}).items():
        if seen["found"]:
            yield (
                f"{seen['found']} of {seen['searched']} {split} puzzles searched have more than one solution "
                f"(first: {seen['first']}): which one counts cannot be known from the puzzle"
            )
    for split, count in card.get("solved_puzzles", {}).items():
        if count:
            yield f"{count} {split} puzzles have no blank: the answer is the question"
    for split, count in card.get("repeated_puzzles", {}).items():
        if count:
            yield f"{count} {split} puzzles repeat an earlier one of the same split"
    if count := card["test_puzzles_in_training"]:
        yield f"{count} test puzzles are training puzzles too: figures on them prove nothing"


def _build(argv: Sequence[str] | None) -> None:
    plan = plan_of(parser().parse_args(argv))
    plan.check()
    if plan.input is None and plan.subsample_size is not None:
        print_rank0(f"no --input: {plan.subsample_size} training puzzles are generated (they are not Sudoku-Extreme)")
    card = build(plan)
    for line in _warnings(card):
        print_rank0(f"warning: {line}")
    counts = card["counts"]
    print_rank0(
        f"built {plan.output_dir} ({card['source']}, {card['board']}) in {card['seconds']:.1f} s: "
        f"train {counts['train']['groups']} groups, {counts['train']['examples']} examples; "
        f"test {counts['test']['examples']} puzzles, "
        f"{card['test_puzzles_with_a_training_solution']} with a solution seen in training; "
        f"sha256 {card['content_hash'][:16]}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Build, print what was built, return the exit code."""
    return run_builder(lambda: _build(argv))


if __name__ == "__main__":
    execute(main)
