"""From a build plan to an ARC data set on disk: read tasks, draw augmentations, write token arrays or the compact form.

Memory does not grow with the arrays: several processes write them into memory-mapped files of their final size.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataset.arc.augment import COLOURS, LARGEST
from dataset.arc.compact import save_compact
from dataset.arc.corpus.generate import SUBSETS, CorpusPlan, generate
from dataset.arc.expand import Expander
from dataset.arc.leakage import RELATIONS, drop_overlap, leakage_report
from dataset.arc.plan import BuildPlan, make_plan, number_identifiers
from dataset.arc.published import claims_to_be_published, collections_of
from dataset.arc.tasks import Subset, read_bundles, read_folders, shared_names
from dataset.arc.tokens import EOS, FIRST_COLOUR, PAD, VOCAB_SIZE
from dataset.metadata import NUM_DEMOS, save_array
from dataset.workers import ordered_map
from dataset.writing import building, refuse_existing, write_dataset
from engine.io import UsageError, available_cores, did_you_mean, progress, sha256_file

# Recorded in the card; raise it when the same plan gives other data.
BUILDER_VERSION = 1
TEST_PUZZLES, LEAKAGE = "test_puzzles.json", "leakage.json"
TASKS = "tasks"
"""Folder with a file for each held-out task of a generated corpus, for `scripts/predict.py`."""
BLOCK = 4096
"""Examples that a worker expands at once: 7 MB of inputs on the public canvas."""
EXAMPLES_PER_WORKER = 2 * BLOCK
"""With fewer examples, starting processes costs more than it saves."""


@dataclass(kw_only=True)
class ArcBuild:
    """What to build; the flags of `python -m dataset.build_arc_dataset`."""

    output_dir: Path
    prefix: str | None = None
    """Prefix of the bundles PREFIX_SUBSET_challenges.json; None reads `folders`."""
    folders: tuple[Path, ...] = ()
    """Folders of tasks, one file each; their sub-folders are subsets."""
    subsets: tuple[str, ...] = ()
    """Which subsets, in this order; empty takes all of the folders."""
    test_sets: tuple[str, ...] = ("evaluation",)
    """Subsets whose tests are the test split."""
    num_aug: int = 1000
    """Most augmented copies of each task, in addition to the original."""
    seed: int = 42
    identifiers_start: int = 1
    """The first puzzle identifier; those below it are blank."""
    canvas: int = LARGEST
    """Side of the canvas; pairs that do not fit are left out."""
    compact: bool = False
    """Write the compact form instead of token arrays."""
    data_mode: Literal["embedding", "encoder"] = "embedding"
    """What of the test sets is held out: the tests, or whole tasks, whose demonstrations come with each test."""
    overlap: Literal["drop", "keep"] = "keep"
    """Encoder mode: drop training tasks that share an id or a grid with a held-out task, or keep them (public)."""
    translate: bool = True
    """Translate training examples to random places on the canvas."""
    workers: int | None = None
    """Processes; None: by the machine and the number of examples. Never changes the data."""
    overwrite: bool = False

    def check_numbers(self) -> None:
        """Raise UsageError, naming the flag, for a number out of range."""
        for flag, value, least, most in (
            ("--num-aug", self.num_aug, 0, 1_000_000),
            ("--seed", self.seed, 0, (1 << 32) - 1),
            ("--puzzle-identifiers-start", self.identifiers_start, 1, 1 << 24),
            ("--canvas", self.canvas, 1, LARGEST),
            ("--workers", self.workers, 1, 1024),
        ):
            if value is not None and not least <= value <= most:
                raise UsageError(f"{flag} must be {least} to {most}, got {value}")

    def check(self) -> None:
        """Raise UsageError, naming the flag, for inputs that are missing or contradict each other."""
        if (self.prefix is None) == (not self.folders):
            raise UsageError("give --input-file-prefix (bundles), --dataset-dirs (a file for each task) or --generated")
        if repeated := [name for name in self.subsets if self.subsets.count(name) > 1]:
            raise UsageError(f"--subsets {repeated[0]} is given twice")
        if self.prefix is not None and not self.subsets:
            raise UsageError("--input-file-prefix needs --subsets, e.g. --subsets training evaluation concept")

    def read(self) -> list[Subset]:
        """Read the tasks. Raises: UsageError naming file and task, or the flag."""
        subsets = (
            read_folders(self.folders, self.subsets)
            if self.prefix is None
            else list(read_bundles(self.prefix, self.subsets))
        )
        self._check_test_sets(subsets)
        return subsets

    def _check_test_sets(self, subsets: Sequence[Subset]) -> None:
        names = [subset.name for subset in subsets]
        for flag, name in zip(("--test-set-name", "--test-set-name2"), self.test_sets, strict=False):
            if name not in names:
                raise UsageError(f"{flag} {name} is not one of the subsets: {did_you_mean(name, names)}")
        tested: dict[str, Path] = {}
        for task in (task for subset in subsets if subset.name in self.test_sets for task in subset.tasks):
            if task.name in tested:
                raise UsageError(
                    f"{task.path}: task {task.name} is in {tested[task.name]} too: a test set has one task of a name"
                )
            tested[task.name] = task.path


@dataclass(eq=False)
class ArcSplit:
    """A split that is saved without being completely in memory (dataset.writing.WrittenSplit)."""

    source: Expander
    identifiers: np.ndarray
    """[P]"""
    num_demos: np.ndarray | None
    """[P], None in embedding mode."""
    storage: str
    workers: int | None

    def counts(self) -> dict[str, int]:
        """Groups, puzzles and examples."""
        groups, puzzles = len(self.source.group_indices) - 1, len(self.identifiers)
        return {"groups": groups, "puzzles": puzzles, "examples": len(self.source.offsets)}

    def save(self, folder: Path, name: str, vocab_size: int) -> None:
        """Write the arrays of the set `name`."""
        indices = {
            "puzzle_identifiers": self.identifiers,
            "puzzle_indices": self.source.puzzle_indices,
            "group_indices": self.source.group_indices,
            **({} if self.num_demos is None else {NUM_DEMOS: self.num_demos}),
        }
        for array, values in indices.items():
            save_array(folder / f"{name}__{array}.npy", values.astype(np.int32))
        if self.storage == "compact":
            save_compact(self.source, folder, name)
        else:
            self._save_tokens(folder, name)

    def _save_tokens(self, folder: Path, name: str) -> None:
        count = len(self.source.offsets)
        files = [folder / f"{name}__{array}.npy" for array in ("inputs", "labels")]
        for file in files:
            np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(count, self.source.length))
            _reserve(file)
        firsts = range(0, count, BLOCK)
        workers = self.workers or max(1, min(available_cores(), count // EXAMPLES_PER_WORKER))
        done = ordered_map(partial(_fill, self.source, files), firsts, workers=workers)
        for _ in progress(done, total=len(firsts), label=f"writing {folder.name}"):
            pass


def _reserve(file: Path) -> None:
    """Allocate the disk space of a sparse file, as a page without space would kill the writer. Raises: OSError."""
    if hasattr(os, "posix_fallocate"):
        with open(file, "rb+") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)


def _fill(source: Expander, files: Sequence[Path], first: int) -> None:
    examples = np.arange(first, min(first + BLOCK, len(source.offsets)))
    for file, labels in zip(files, (False, True), strict=True):
        array = np.load(file, mmap_mode="r+", allow_pickle=False)
        array[examples[0] : examples[-1] + 1] = source.rows(examples, labels=labels)


def build(plan: ArcBuild) -> dict[str, Any]:
    """Build the data set of `plan` and return its card plus `seconds`. Workers never change the data.

    Raises: UsageError for a plan, an input file or an output folder that cannot be used.
    """
    plan.check()
    return build_subsets(plan, plan.read)


def build_generated(plan: ArcBuild, corpus: CorpusPlan, card: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """As `build` for a generated corpus, whose canvas and test sets replace the plan's. Raises: UsageError."""
    corpus.check()
    # The corpus keeps its tests out of training itself; single demonstrations on small grids may coincide.
    plan = replace(
        plan, prefix=None, folders=(), test_sets=SUBSETS[1:], canvas=max(plan.canvas, corpus.side), overlap="keep"
    )
    train, novel = corpus.names()
    lines = {
        "source": "generated",
        "licence": "none: generated",
        "families": train,
        "held_out_families": novel,
        "corpus_seed": corpus.seed,
    }
    return build_subsets(plan, lambda: generate(corpus), {**lines, **(card or {})})


def build_subsets(
    plan: ArcBuild,
    read: Callable[[], list[Subset]],
    card: Mapping[str, Any] | None = None,
    *,
    relations: Sequence[str] = RELATIONS,
) -> dict[str, Any]:
    """As `build` for the subsets that `read()` returns.

    Args:
        card: further entries of the card.
        relations: those of RELATIONS that the leakage report checks.
    """
    began = time.perf_counter()
    plan.check_numbers()
    with building(plan.output_dir) as root:
        refuse_existing(root, overwrite=plan.overwrite)
        subsets, encoder = read(), plan.data_mode == "encoder"
        collections = collections_of(subsets)
        subsets, leakage, removed = _held_apart(plan, subsets, relations)
        drawn = make_plan(
            subsets,
            test_sets=plan.test_sets,
            num_aug=plan.num_aug,
            seed=plan.seed,
            side=plan.canvas,
            data_mode=plan.data_mode,
            translate=plan.translate,
        )
        if removed:
            drawn.skipped["training tasks that share an id or a grid with a held-out task"] = len(removed)
        if not drawn.train.tasks or not drawn.test.tasks:
            raise UsageError(_why_empty(plan, drawn, subsets, removed))
        lines = dict(card or {})
        if claims_to_be_published(root) and not collections and not lines.get("stand_in"):
            raise UsageError(
                f"--output-dir {root.name}: the tasks come from no published collection, so the folder must not bear "
                "the name of one"
            )
        names, *identifiers = number_identifiers(drawn, plan.identifiers_start)
        storage = "compact" if plan.compact else "arrays"
        splits = {
            split: ArcSplit(source.expander(), numbers, source.num_demos if encoder else None, storage, plan.workers)
            for (split, source), numbers in zip(
                (("train", drawn.train), ("test", drawn.test)), identifiers, strict=True
            )
        }

        def write_reports(folder: Path) -> dict[str, Any]:
            puzzles = {name: task.to_json() for name, task in drawn.test_tasks.items()}
            (folder / TEST_PUZZLES).write_text(json.dumps(puzzles) + "\n", encoding="utf-8")
            (folder / LEAKAGE).write_text(json.dumps(leakage, indent=1) + "\n", encoding="utf-8")
            if lines.get("source") == "generated":
                for subset in subsets[1:]:
                    _write_tasks(folder / TASKS / subset.name, subset)
            return {}

        written = write_dataset(
            root,
            splits,
            vocab_size=VOCAB_SIZE,
            seq_len=plan.canvas**2,
            identifiers=names,
            data_mode=plan.data_mode,
            pad_id=PAD,
            ignore_label_id=PAD,
            card=_card(plan, drawn, subsets, collections, leakage)
            | {"name": root.name, "identifiers": len(names)}
            | lines,
            overwrite=plan.overwrite,
            check=write_reports,
        )
    return {**written, "seconds": round(time.perf_counter() - began, 2)}


def _held_apart(
    plan: ArcBuild, subsets: list[Subset], relations: Sequence[str]
) -> tuple[list[Subset], dict[str, Any], list[str]]:
    """(subsets to build, leakage report, names of the training tasks left out because they share an id or a grid with
    a held-out one)."""
    encoder = plan.data_mode == "encoder"
    removed: list[str] = []

    def report(subsets: Sequence[Subset]) -> dict[str, Any]:
        fitting = [subset.within(plan.canvas) for subset in subsets]
        return leakage_report(fitting, test_sets=plan.test_sets, whole_tasks=encoder, relations=relations)

    leakage = report(subsets)
    if encoder and plan.overlap == "drop":
        # A report has only the strongest relation of each grid: tasks that share it by a weaker one appear next.
        while (result := drop_overlap(subsets, plan.test_sets, leakage))[1]:
            subsets, gone = result
            leakage, removed = report(subsets), sorted([*removed, *gone])
        leakage["left_out"] = removed
    return subsets, leakage, removed


def _why_empty(plan: ArcBuild, drawn: BuildPlan, subsets: Sequence[Subset], removed: Sequence[str]) -> str:
    """Why no task is left to train or to test on."""
    if plan.data_mode == "encoder" and all(subset.name in plan.test_sets for subset in subsets):
        return f"every subset is a test set ({', '.join(plan.test_sets)}): add one to train on"
    if removed and not any(subset.tasks for subset in subsets if subset.name not in plan.test_sets):
        return (
            f"all {len(removed)} training tasks share an id or a grid with a held-out task and are left out: "
            "--overlap keep keeps them"
        )
    empty = "test" if drawn.train.tasks else "training"
    return f"--canvas {plan.canvas}: no {empty} task fits it ({_listed(drawn.skipped)})"


def _write_tasks(folder: Path, subset: Subset) -> None:
    folder.mkdir(parents=True)
    for task in subset.tasks:
        (folder / f"{task.name}.json").write_text(json.dumps(task.to_json()) + "\n", encoding="utf-8")


def _card(
    plan: ArcBuild,
    drawn: BuildPlan,
    subsets: Sequence[Subset],
    collections: Mapping[str, str],
    leakage: Mapping[str, Any],
) -> dict[str, Any]:
    encoder = plan.data_mode == "encoder"
    return {
        "builder": "dataset.build_arc_dataset" + "_encoder" * encoder,
        "builder_version": BUILDER_VERSION,
        "source": "arc" if collections else "json",
        "collections": list(collections),
        "licence": ", ".join(dict.fromkeys(collections.values())) or "that of the input",
        "subsets": {subset.name: _subset_card(subset) for subset in subsets},
        "test_sets": list(plan.test_sets),
        "canvas": plan.canvas,
        "tokens": {"pad": PAD, "eos": EOS, "colours": [FIRST_COLOUR, FIRST_COLOUR + COLOURS - 1]},
        "num_aug": plan.num_aug,
        "seed": plan.seed,
        **({"overlap": plan.overlap, "moved": plan.translate} if encoder else {}),
        "skipped": drawn.skipped,
        "names_of_different_tasks": [] if encoder else shared_names(subsets),
        "tasks_with_fewer_augmentations": drawn.not_full,
        "solutions": drawn.unsolved == 0,
        "leakage": {"empty": leakage["empty"], **leakage["counts"]},
    }


def _subset_card(subset: Subset) -> dict[str, Any]:
    pairs = [pair.kind for task in subset.tasks for pair in task.pairs]
    hashes = {file.name: sha256_file(file) for file in subset.files} if len(subset.files) <= 2 else {}
    counts = {"tasks": len(subset.tasks), "train_pairs": pairs.count("train"), "test_pairs": pairs.count("test")}
    return {**counts, **({"sha256": hashes} if hashes else {})}


def _listed(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items())
