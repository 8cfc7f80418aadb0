"""From a build plan to a data set on disk: generate puzzles or read the public CSV, augment, write, check."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.format import load_split
from dataset.published import SUDOKU_EXTREME
from dataset.sudoku.augment import augment
from dataset.sudoku.canonical import classes
from dataset.sudoku.generate import Puzzle, Recipe, generate, split_pool
from dataset.sudoku.grid import Geometry, geometry
from dataset.sudoku.minimal import minimal
from dataset.sudoku.public_csv import Boards, read_csv, several_solutions
from dataset.sudoku.solve import DIFFICULTY_RULE
from dataset.workers import ordered_map
from dataset.writing import SplitArrays, building, refuse_existing, write_dataset
from engine.distributed import keyed_numpy
from engine.io import RunFailure, UsageError, available_cores, progress

# Recorded in the card; raise it when the same plan gives other data.
BUILDER_VERSION = 1
BLANKS = {4: (6, 10), 6: (12, 22), 9: (30, 45)}
NUM_TRAIN, NUM_TEST = 1000, 256
# Up to this many solutions of a file, symmetric ones are held out together.
SYMMETRIC = 50_000
# With fewer puzzles, starting processes costs more than it saves.
PUZZLES_PER_WORKER = 512


FEWEST_CLUES = {4: 4, 6: 8, 9: 17}
"""Known minima of clues for a unique solution (9x9: McGuire et al. 2012; 4x4 and 6x6 by exhaustive search)."""


@dataclass(kw_only=True)
class SudokuBuild:
    """What to build; the flags of `python -m dataset.build_sudoku_dataset`."""

    output_dir: Path
    size: int | None = None
    """Board size; None means 9, or what the CSV holds."""
    num_train: int | None = None
    """Training puzzles before augmentation (generated data)."""
    num_test: int | None = None
    """Test puzzles (generated data, or held out of a single CSV)."""
    blanks: tuple[int, int] | None = None
    """Fewest and most blanks of a generated puzzle."""
    num_aug: int = 0
    """Augmented copies of each training puzzle, in addition to the original."""
    subsample_size: int | None = None
    """Number of random training puzzles to keep of a CSV; without a CSV, the number to generate."""
    min_difficulty: int = 0
    """Least difficulty (rating in a CSV; guesses undone of generated puzzles)."""
    input: Path | None = None
    """Folder with train.csv and test.csv, or one CSV."""
    test_input: Path | None = None
    """A CSV whose puzzles are all test puzzles, in addition to those held out of `input`."""
    seed: int = 0
    workers: int | None = None
    """Processes; None: by the machine and the number of puzzles. Never changes the data."""
    overwrite: bool = False

    @property
    def minimal(self) -> bool:
        """Whether generated puzzles are minimal: 9x9 ones with a least difficulty, unless blanks are given."""
        return self.input is None and self.min_difficulty > 0 and self.blanks is None and (self.size or 9) == 9

    def check(self) -> None:
        """Raise UsageError, naming the flag, for values that cannot be built."""
        geo = geometry(self.size or 9)
        for flag, value, least in (
            ("--num-train", self.num_train, 1),
            ("--num-test", self.num_test, 1),
            ("--subsample-size", self.subsample_size, 1),
            ("--num-aug", self.num_aug, 0),
            ("--min-difficulty", self.min_difficulty, 0),
            ("--seed", self.seed, 0),
            ("--workers", self.workers, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{flag} must be at least {least}, got {value}")
        if self.input is None and SUDOKU_EXTREME.claims_to_be(self.output_dir):
            raise UsageError(
                f"--output-dir {self.output_dir}: generated puzzles are not Sudoku-Extreme and do not get its name: "
                "give the public CSV with --input (--download fetches it), or choose another --output-dir"
            )
        if self.input is not None and self.blanks is not None:
            raise UsageError("--blanks is for generated puzzles: leave it out with --input")
        if self.test_input is not None and (self.input is None or self.input.is_dir()):
            raise UsageError("--test-input is for a single CSV in --input, and tests on a second one")
        if self.test_input is not None and self.input is not None and self.test_input.resolve() == self.input.resolve():
            raise UsageError(
                "--test-input is the file of --input: leave it out, and test puzzles are held out of that file"
            )
        if self.input is not None and self.num_train is not None:
            raise UsageError("--num-train is for generated puzzles: with --input use --subsample-size")
        if self.input is None and None not in (self.num_train, self.subsample_size):
            raise UsageError("--num-train and --subsample-size mean the same when puzzles are generated: give one")
        most = geo.cells - FEWEST_CLUES[geo.size]
        if self.blanks is not None and not 1 <= self.blanks[0] <= self.blanks[1] <= most:
            raise UsageError(
                f"--blanks {self.blanks[0]} {self.blanks[1]}: expected LO HI with 1 <= LO <= HI <= {most} "
                f"(fewer than {FEWEST_CLUES[geo.size]} clues never have one solution)"
            )
        if geo.size == 4 and self.input is None:
            low, high = self.blanks or BLANKS[4]
            exist = 288 * sum(math.comb(16, blanks) for blanks in range(low, high + 1))
            needed = max(self.num_train or self.subsample_size or 0, self.num_test or 0)
            if needed > exist:
                raise UsageError(
                    f"{needed} puzzles were asked for; at most {exist} 4x4 puzzles have {low} to {high} blanks"
                )


@dataclass
class _Source:
    """Puzzles of both splits before augmentation, and their entries in the card."""

    geo: Geometry
    train: tuple[np.ndarray, np.ndarray]
    """(questions, answers), each uint8 [N, cells]."""
    test: tuple[np.ndarray, np.ndarray]
    forbidden: frozenset[bytes]
    card: dict[str, Any]


def _arrays(puzzles: Sequence[Puzzle]) -> tuple[np.ndarray, np.ndarray]:
    both = (b"".join(p.question for p in puzzles), b"".join(p.answer for p in puzzles))
    questions, answers = (np.frombuffer(joined, dtype=np.uint8).reshape(len(puzzles), -1) for joined in both)
    return questions, answers


def _histogram(puzzles: Sequence[Puzzle]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(p.difficulty for p in puzzles).items())}


def _mean(puzzles: Sequence[Puzzle]) -> float:
    return round(sum(p.difficulty for p in puzzles) / len(puzzles), 2)


def _workers(plan: SudokuBuild, work: int) -> int:
    if plan.workers is not None:
        return plan.workers
    return max(1, min(available_cores(), work // PUZZLES_PER_WORKER))


def _generated(plan: SudokuBuild) -> _Source:
    geo = geometry(plan.size or 9)
    blanks = plan.blanks or BLANKS[geo.size]
    num_train = plan.num_train or plan.subsample_size or NUM_TRAIN
    num_test = plan.num_test or NUM_TEST
    rule = {"rule": DIFFICULTY_RULE}
    if plan.minimal:
        counts = {"test": num_test, "train": num_train}
        workers = _workers(plan, (num_train + num_test) * PUZZLES_PER_WORKER)
        puzzles = minimal(plan.seed, geo.size, counts, least=plan.min_difficulty, workers=workers)
        card: dict[str, Any] = {
            "source": "generated",
            "minimal": "every given is needed for the solution to be the only one",
            "difficulty": {**rule, "mean": {split: _mean(puzzles[split]) for split in puzzles}},
            "split": "by class: no two solutions, of either split, are joined by a symmetry",
        }
        card["difficulty"].update({split: _histogram(puzzles[split]) for split in ("train", "test")})
        forbidden = frozenset(p.answer for p in puzzles["test"])
        return _Source(geo, _arrays(puzzles["train"]), _arrays(puzzles["test"]), forbidden, card)
    train_pool, test_pool = split_pool(geo.size, plan.seed)
    common = {"seed": plan.seed, "size": geo.size, "blanks": blanks, "min_difficulty": plan.min_difficulty}
    recipe = Recipe(split="test", pool=test_pool, **common)  # type: ignore[arg-type]
    test = generate(recipe, num_test, workers=_workers(plan, num_test))
    # No training puzzle, nor (see `_augmented`) a copy of one, may have the solution of a test puzzle.
    forbidden = frozenset(p.answer for p in test)
    recipe = Recipe(split="train", pool=train_pool, forbidden=forbidden, **common)  # type: ignore[arg-type]
    train = generate(recipe, num_train, workers=_workers(plan, num_train))
    card = {
        "source": "generated",
        "blanks": list(blanks),
        "difficulty": {**rule, "train": _histogram(train), "test": _histogram(test)},
        "split": "by solution: no test solution among the training ones, augmented copies included",
    }
    return _Source(geo, _arrays(train), _arrays(test), forbidden, card)


def _hold_out(boards: Boards, count: int, seed: int, others: Boards | None) -> tuple[Boards, Boards, str]:
    """Split one file: (train, test, description of the split), with `count` test puzzles whose solutions train lacks.

    In files of up to SYMMETRIC solutions (5 ms each), symmetric solutions count as one; so do those of `others`, the
    test puzzles of another file.

    Raises: UsageError if that leaves nothing to train on.
    """
    geo = geometry(boards.size)
    symmetric = len(boards.answers) <= SYMMETRIC and boards.size == 9  # 4x4 has 2 classes, 6x6 has 49

    def keys(answers: np.ndarray) -> list[bytes]:
        return classes(answers, geo) if symmetric else [answer.tobytes() for answer in answers]

    owners: dict[bytes, list[int]] = {}
    for number, key in enumerate(keys(boards.answers)):
        owners.setdefault(key, []).append(number)
    tested = [] if others is None else [owners.pop(key) for key in set(keys(others.answers)) if key in owners]
    groups = list(owners.values())
    if len(groups) < 2:
        missing = "" if others is None else f" that {others.path} has not"
        raise UsageError(
            f"{boards.path} holds fewer than two different solutions{missing}: nothing can be held out for a test"
        )
    test = [number for group in tested for number in group]
    order = keyed_numpy(seed, "sudoku/hold_out").permutation(len(groups)).tolist()
    taken = 0
    while len(test) < count and taken < len(groups) - 1:
        test += groups[order[taken]]
        taken += 1
    if len(test) < count:
        raise UsageError(
            f"--num-test {count} is more than {boards.path} can give: of its {len(boards.ratings)} puzzles "
            f"{len(test)} can be held out, which leaves one solution to train on"
        )
    train = sorted(number for group in order[taken:] for number in groups[group])
    how = "by solution, held out of one file" + (", symmetric ones counted as one" if symmetric else "")
    return boards.take(np.array(train)), boards.take(np.array(sorted(test[:count]))), how


def _from_csv(plan: SudokuBuild, source: Path) -> _Source:
    least, workers = plan.min_difficulty, plan.workers or available_cores()
    if source.is_dir():
        if plan.num_test is not None:
            raise UsageError("--num-test is for generated puzzles or a single CSV: test.csv is used as a whole")
        train = read_csv(source / "train.csv", size=plan.size, min_difficulty=least, workers=workers)
        test = read_csv(source / "test.csv", size=train.size, min_difficulty=least, workers=workers)
        split, forbidden = "that of the files", frozenset[bytes]()
    else:
        boards = read_csv(source, size=plan.size, min_difficulty=least, workers=workers)
        count = plan.num_test or max(1, min(1000, len(boards.ratings) // 10))
        others = None
        if plan.test_input is not None:
            others = read_csv(
                plan.test_input, size=boards.size, min_difficulty=least, workers=workers, flag="--test-input"
            )
        train, test, split = _hold_out(boards, count, plan.seed, others)
        if others is not None:
            test, split = test.followed_by(others), f"{split}; and all of {others.path.name}"
        forbidden = frozenset(answer.tobytes() for answer in test.answers)
    offered = len(train.ratings)
    if plan.subsample_size is not None and plan.subsample_size > offered:
        raise UsageError(
            f"--subsample-size {plan.subsample_size} is more than the {offered} training puzzles of {train.path}"
            + (f" with a rating >= {least}" if least else "")
        )
    if plan.subsample_size is not None and plan.subsample_size < offered:
        generator = keyed_numpy(plan.seed, "sudoku/subsample")
        train = train.take(generator.choice(offered, plan.subsample_size, replace=False))
    both = {"train": train, "test": test}
    card = {
        "source": "csv",
        "input": str(source),
        **({} if plan.test_input is None else {"test_input": str(plan.test_input)}),
        "rows_read": {"train": train.rows_read, "test": test.rows_read},
        "difficulty": {
            "rule": "the rating column of the CSV" if train.rated else "none: the file has no ratings",
            **{name: boards.rating_histogram() for name, boards in both.items()},
        },
        "split": split,
        "answers": "found by the exact solver" if train.solved_here else "those of the file",
        # Counted before augmentation, which keeps the number of solutions.
        "several_solutions": {
            name: several_solutions(boards, seed=plan.seed, workers=workers) for name, boards in both.items()
        },
        "solved_puzzles": {name: boards.solved() for name, boards in both.items()},
        "repeated_puzzles": {name: boards.repeated() for name, boards in both.items()},
    }
    geo = geometry(train.size)
    return _Source(geo, (train.questions, train.answers), (test.questions, test.answers), forbidden, card)


@dataclass(frozen=True)
class _AugmentJob:
    first: int
    questions: np.ndarray
    answers: np.ndarray
    count: int
    size: int
    seed: int
    forbidden: frozenset[bytes]


def _augment_job(job: _AugmentJob) -> tuple[np.ndarray, np.ndarray]:
    geo, copies = geometry(job.size), []
    for offset, (question, answer) in enumerate(zip(job.questions, job.answers, strict=True)):
        generator = keyed_numpy(job.seed, "sudoku/augment", job.first + offset)
        copies.append(augment(question, answer, job.count, geo, generator, job.forbidden))
    return np.concatenate([q for q, _ in copies]), np.concatenate([a for _, a in copies])


def _augmented(plan: SudokuBuild, source: _Source) -> tuple[np.ndarray, np.ndarray]:
    questions, answers = source.train
    if plan.num_aug == 0:
        return questions, answers
    step = max(1, 20_000 // (plan.num_aug + 1))
    jobs = [
        _AugmentJob(
            first,
            questions[first : first + step],
            answers[first : first + step],
            plan.num_aug,
            source.geo.size,
            plan.seed,
            source.forbidden,
        )
        for first in range(0, len(questions), step)
    ]
    copies = len(questions) * (plan.num_aug + 1)
    shape = (copies, source.geo.cells)
    out = np.empty(shape, dtype=np.uint8), np.empty(shape, dtype=np.uint8)
    filled = 0
    results = ordered_map(_augment_job, jobs, workers=_workers(plan, copies // 16))
    for some_questions, some_answers in progress(results, total=len(jobs), label="augmenting"):
        end = filled + len(some_questions)
        out[0][filled:end], out[1][filled:end] = some_questions, some_answers
        filled = end
    return out


def _split_arrays(questions: np.ndarray, answers: np.ndarray, copies: int) -> SplitArrays:
    """Digits as tokens; a group is a puzzle with its augmented `copies`."""
    return SplitArrays.of_boards(questions + np.uint8(1), answers + np.uint8(1), copies)


def overlap(root: Path, array: str) -> int:
    """Count the test examples whose `inputs` (puzzle) or `labels` (solution) also occur in training, from the files."""
    train, test = (getattr(load_split(root, split), array) for split in ("train", "test"))
    rows = [row.tobytes() for row in test]
    needed = set(rows)
    common = {key for key in (row.tobytes() for row in train) if key in needed}
    return sum(key in common for key in rows)


def build(plan: SudokuBuild) -> dict[str, Any]:
    """Build the data set of `plan` and return its card plus `seconds`. Workers never change the data.

    Raises: UsageError for a plan, an input file or an output folder that cannot be used.
    """
    plan.check()
    began = time.perf_counter()
    with building(plan.output_dir) as root:
        refuse_existing(root, overwrite=plan.overwrite)
        source = _generated(plan) if plan.input is None else _from_csv(plan, plan.input)
        questions, answers = _augmented(plan, source)

        def check(folder: Path) -> dict[str, Any]:
            solutions = overlap(folder, "labels")
            if solutions and source.forbidden:
                raise RunFailure(f"{solutions} test solutions occur in the training data: a fault of the builder")
            return {
                "test_puzzles_with_a_training_solution": solutions,
                "test_puzzles_in_training": overlap(folder, "inputs") if solutions else 0,
            }

        card = write_dataset(
            root,
            {
                "train": _split_arrays(questions, answers, plan.num_aug + 1),
                "test": _split_arrays(*source.test, 1),
            },
            vocab_size=source.geo.vocab_size,
            seq_len=source.geo.cells,
            card={
                "name": root.name,
                "builder": "dataset.build_sudoku_dataset",
                "builder_version": BUILDER_VERSION,
                "board": f"{source.geo.size}x{source.geo.size}",
                "tokens": {"pad": 0, "blank": 1, "digits": [2, source.geo.size + 1]},
                "seed": plan.seed,
                "num_aug": plan.num_aug,
                "min_difficulty": plan.min_difficulty,
                **source.card,
            },
            overwrite=plan.overwrite,
            check=check,
        )
    return {**card, "seconds": round(time.perf_counter() - began, 2)}
