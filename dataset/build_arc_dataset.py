"""Build an ARC data set: ARC-AGI-1, ARC-AGI-2, ConceptARC, or any tasks in their format, with augmentations.

    python -m dataset.build_arc_dataset --input-file-prefix arc-bundles/arc-agi --subsets training evaluation concept \\
        --test-set-name evaluation --output-dir data/arc1concept-aug-1000 --compact
    python -m dataset.build_arc_dataset --dataset-dirs ARC-AGI/data ConceptARC/corpus --output-dir data/my-arc
    python -m dataset.build_arc_dataset --generated --canvas 10 --num-aug 8 --output-dir data/my-corpus

Training uses the demonstrations of all subsets and the tests of all but the test set; the tests of the test set are the
test split. Names, order and random numbers are those of the public builder, byte for byte. Nothing is downloaded.
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

if not __package__:  # `python dataset/build_arc_dataset.py`: import from the repository, not from dataset/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataset.arc.build import ArcBuild, build, build_generated
from dataset.arc.corpus.generate import PRESETS, CorpusPlan
from dataset.arguments import BuilderParser, run_builder
from engine.io import UsageError, print_rank0


def parser(encoder: str | None = None) -> argparse.ArgumentParser:
    """The command line; every flag is also accepted with underscores.

    `encoder`: the description of dataset.build_arc_dataset_encoder, which adds two flags.
    """
    out = BuilderParser("build_arc_dataset" + ("_encoder" if encoder else ""), encoder or __doc__)
    out.add_argument("--output-dir", type=Path, required=True, help="folder to create")
    out.add_argument(
        "--input-file-prefix",
        type=Path,
        metavar="PREFIX",
        help="of the bundles PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json",
    )
    out.add_argument(
        "--dataset-dirs",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of tasks, one JSON file each; every sub-folder with tasks is a subset of its name",
    )
    out.add_argument(
        "--generated", action="store_true", help="tasks of a generated corpus: its subsets training, evaluation, novel"
    )
    out.add_argument("--subsets", nargs="+", default=[], metavar="NAME", help="which subsets, in this order")
    out.add_argument(
        "--test-set-name",
        metavar="NAME",
        help="subset whose tests are the test split (default: evaluation; of a generated corpus evaluation and novel)",
    )
    out.add_argument("--test-set-name2", metavar="NAME", help="a second one")
    out.add_argument("--num-aug", type=int, default=1000, metavar="N", help="most augmented copies of each task")
    corpus = CorpusPlan()
    out.add_argument(
        "--families",
        metavar="NAMES",
        help=f"of a generated corpus: {', '.join(PRESETS)}, or families joined by commas, twice the same for "
        f"twice its share of training (default: {corpus.families})",
    )
    low, high = corpus.demonstrations
    out.add_argument(
        "--demonstrations",
        type=int,
        nargs=2,
        metavar=("LO", "HI"),
        help=f"of a generated corpus: fewest and most of a task (default: {low} {high})",
    )
    out.add_argument(
        "--largest", type=int, metavar="N", help="of a generated corpus: side of its largest grid (default: the canvas)"
    )
    for flag, default, meaning in (
        ("--num-train", corpus.num_train, "tasks to train on"),
        ("--num-test", corpus.num_test, "held-out tasks of the families that are trained on"),
        ("--num-novel", corpus.num_novel, "tasks of families that are not trained on"),
        ("--corpus-seed", corpus.seed, "seed of the tasks; --seed is that of the augmentations"),
    ):
        out.add_argument(flag, type=int, metavar="N", help=f"of a generated corpus: {meaning} (default: {default})")
    out.add_argument("--seed", type=int, default=42, help="the same seed and tasks give the same data, byte for byte")
    out.add_argument(
        "--puzzle-identifiers-start", type=int, default=1, metavar="N", help="first identifier; lower ones are blank"
    )
    out.add_argument(
        "--canvas", type=int, default=30, metavar="N", help="side of the canvas; what does not fit is left out"
    )
    out.add_argument(
        "--compact",
        action="store_true",
        help="store grids and augmentations: the same batches from a hundredth of the space",
    )
    if encoder:
        out.add_argument(
            "--overlap",
            choices=("drop", "keep"),
            help="training tasks that share an id or a grid with a task of the test set (default: drop)",
        )
        out.add_argument(
            "--translation",
            choices=("train", "none"),
            default="train",
            help="where on the canvas: training pairs anywhere, as the public builder has it, or all at the top left",
        )
    out.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: by cores and work); never changes the data"
    )
    out.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    return out


def plan_of(arguments: argparse.Namespace) -> ArcBuild:
    """The build that the parsed flags describe."""
    second = [arguments.test_set_name2] if arguments.test_set_name2 else []
    return ArcBuild(
        output_dir=arguments.output_dir,
        prefix=None if arguments.input_file_prefix is None else str(arguments.input_file_prefix),
        folders=tuple(arguments.dataset_dirs),
        subsets=tuple(arguments.subsets),
        test_sets=(arguments.test_set_name or "evaluation", *second),
        num_aug=arguments.num_aug,
        seed=arguments.seed,
        identifiers_start=arguments.puzzle_identifiers_start,
        canvas=arguments.canvas,
        compact=arguments.compact,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
        data_mode="encoder" if hasattr(arguments, "overlap") else "embedding",
        overlap=getattr(arguments, "overlap", None) or "drop",
        translate=getattr(arguments, "translation", "train") == "train",
    )


def corpus_of(arguments: argparse.Namespace) -> CorpusPlan | None:
    """The corpus that the flags describe; None without --generated. Raises: UsageError for flags that exclude it."""
    names = ("families", "num_train", "num_test", "num_novel", "demonstrations", "largest", "corpus_seed")
    values = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if not arguments.generated:
        if values:
            flag = "--" + next(iter(values)).replace("_", "-")
            raise UsageError(f"{flag} is for a generated corpus: add --generated, or leave it out")
        return None
    for name in ("input_file_prefix", "dataset_dirs", "subsets", "test_set_name", "test_set_name2", "overlap"):
        if getattr(arguments, name, None):
            raise UsageError(f"--{name.replace('_', '-')} is for tasks of files: leave it out with --generated")
    side, seed = values.pop("largest", arguments.canvas), values.pop("corpus_seed", 0)
    if side > arguments.canvas:
        raise UsageError(f"--largest {side} is more than --canvas {arguments.canvas}: no such grid would fit")
    if "demonstrations" in values:
        values["demonstrations"] = tuple(values["demonstrations"])
    return CorpusPlan(side=side, seed=seed, **values)


def _remarks(card: Mapping[str, Any]) -> Iterator[str]:
    """Notes and warnings about the data, one line each."""
    for reason, count in card["skipped"].items():
        yield f"left out: {count} {reason}"
    if short := card["tasks_with_fewer_augmentations"]:
        least = min(short, key=short.__getitem__)
        yield (
            f"fewer than {card['num_aug']} different augmentations: {len(short)} of the tasks "
            f"(fewest: {least}, {short[least] - 1})"
        )
    if shared := card["names_of_different_tasks"]:
        yield (
            f"warning: {len(shared)} names stand for different tasks, which share their puzzle embeddings "
            f"(first: {shared[0]})"
        )
    if not card["solutions"]:
        yield "warning: test tasks without solutions have a 1x1 grid as label: scores on them mean nothing"
    counts = card["leakage"]
    if counts["empty"]:
        yield "leakage: none (no task id, pair or test grid of the test set occurs in training)"
    else:
        tests, tasks = (
            f"of {counts[f'held_out_{what}']} test{kind}" for what, kind in (("tests", "s"), ("tasks", " tasks"))
        )
        kinds = {
            "ids": f"{tasks} in other subsets too",
            "pair": f"{tests} trained on with their answer",
            "pair_transformed": f"{tests} trained on with their answer, turned or recoloured",
            "input": f"{tests} with their question in training",
            "input_transformed": f"{tests} with their question in training, turned or recoloured",
        }
        lines = [f"{counts[kind]} {meaning}" for kind, meaning in kinds.items() if counts[kind]]
        yield f"leakage: {'; '.join(lines)} (leakage.json)"


def _build(argv: Sequence[str] | None, encoder: str | None) -> None:
    arguments = parser(encoder).parse_args(argv)
    plan = plan_of(arguments)
    corpus = corpus_of(arguments)
    card = build(plan) if corpus is None else build_generated(plan, corpus)
    for line in _remarks(card):
        print_rank0(line)
    counts = card["counts"]
    print_rank0(
        f"built {plan.output_dir} ({', '.join(card['collections']) or card['source']}, canvas {card['canvas']}, "
        f"{'compact' if plan.compact else 'token arrays'}) in {card['seconds']:.1f} s: "
        f"{card['identifiers']:,} identifiers; train {counts['train']['groups']} tasks, "
        f"{counts['train']['examples']:,} examples; test {counts['test']['groups']} tasks, "
        f"{counts['test']['examples']:,} examples; sha256 {card['content_hash'][:16]}"
    )


def main(argv: Sequence[str] | None = None, *, encoder: str | None = None) -> int:
    """Build, print what was built, return the exit code."""
    return run_builder(lambda: _build(argv, encoder))


if __name__ == "__main__":
    execute(main)
