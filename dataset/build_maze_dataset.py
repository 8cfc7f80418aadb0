"""Build a maze data set: generated mazes with a long shortest path, or the public Maze-Hard CSV.

    python -m dataset.build_maze_dataset --size 10 --num-train 5000 --num-test 500 --output-dir data/my-mazes
    python -m dataset.build_maze_dataset --input maze-hard/ --output-dir data/maze-30x30-hard-1k

Without --input mazes are generated; nothing is downloaded. Scores on generated mazes are not comparable with published
Maze-Hard figures; card.json in the output folder records which of the two a data set is.
"""

from __future__ import annotations

from engine.io import begin, execute

if __name__ == "__main__":
    begin()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # `python dataset/build_maze_dataset.py`: import from the repository, not from dataset/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataset.arguments import BuilderParser, run_builder
from dataset.hub import download_csv
from dataset.maze.build import MazeBuild, build
from engine.io import UsageError, print_rank0

HUB_REPOSITORY = "sapientinc/maze-30x30-hard-1k"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = BuilderParser("build_maze_dataset", __doc__)
    add = out.add_argument
    add(
        "--output-dir",
        type=Path,
        help="folder to create (default: data/maze-NxN, or named after the input)",
    )
    add("--size", type=int, metavar="N", help="side of generated mazes, 5 to 200 (default: 30)")
    add("--num-train", type=int, metavar="N", help="training mazes to generate (default: 1000)")
    add("--num-test", type=int, metavar="N", help="test mazes to generate (default: 1000)")
    add(
        "--min-path",
        type=int,
        metavar="N",
        help="least steps from start to goal (default: 110 on 30x30, by size else)",
    )
    add("--loops", type=float, metavar="SHARE", help="share of the walls between corridors to open (default: 0.05)")
    add("--aug", action="store_true", help="all eight turned and mirrored forms of each training maze")
    add("--input", type=Path, help="folder with train.csv and test.csv (source,question,answer,rating)")
    add("--subsample-size", type=int, metavar="N", help="number of training mazes drawn at random from the CSV")
    add("--download", action="store_true", help=f"fetch the CSV files from the Hugging Face Hub ({HUB_REPOSITORY})")
    add("--csv", action="store_true", help="also write train.csv and test.csv in the published form")
    add("--seed", type=int, default=0, help="the same seed and flags give the same data, byte for byte (default: 0)")
    add("--overwrite", action="store_true", help="replace an existing output folder")
    return out


def plan_of(arguments: argparse.Namespace) -> MazeBuild:
    """The build that the parsed flags describe. Raises: UsageError."""
    values = dict(vars(arguments))
    download, folder = values.pop("download"), values.pop("output_dir")
    if download and arguments.input is not None:
        raise UsageError("--download and --input exclude each other: both name the source of the CSV files")
    if download:
        values["input"] = download_csv(HUB_REPOSITORY)
    side = arguments.size or 30
    name = (
        "maze-30x30-hard-1k"
        if download
        else f"maze-{arguments.input.resolve().name}"
        if arguments.input
        else f"maze-{side}x{side}"
    )
    return MazeBuild(output_dir=folder or Path("data") / name, **values)


def _build(argv: Sequence[str] | None) -> None:
    plan = plan_of(parser().parse_args(argv))
    card = build(plan)
    counts = card["counts"]
    for split, paths in card["paths"].items():
        mazes = counts[split]["groups"]
        if short := mazes - paths["answers_that_are_shortest"]:
            print_rank0(f"warning: {short} of {mazes} {split} answers are paths, but not shortest ones")
        if count := card["repeated_mazes"][split]:
            print_rank0(f"warning: {count} {split} mazes repeat an earlier one of the same split")
    if repeated := card["test_mazes_in_training"]:
        print_rank0(f"warning: {repeated} test mazes are training mazes too (turned and mirrored ones included)")
    lengths = card["paths"]["test"]["shortest_path"]
    print_rank0(
        f"built {plan.output_dir} ({card['source']}, {card['board']}) in {card['seconds']:.1f} s: "
        f"train {counts['train']['groups']} mazes, {counts['train']['examples']} examples; "
        f"test {counts['test']['examples']} mazes, paths of {lengths['least']} to {lengths['most']} steps "
        f"(median {lengths['median']}); sha256 {card['content_hash'][:16]}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Build, print what was built, return the exit code."""
    return run_builder(lambda: _build(argv))


if __name__ == "__main__":
    execute(main)
