"""Draws the augmentations of every task and the offset of every example on the canvas.

Numbers, order and names are those of the public builder (arXiv 2510.04871), drawn from one stream: the tasks of each
subset are shuffled; each task gets up to `num_aug` augmentations that differ from it and from each other; at the end
all training examples of a puzzle but one are translated to random offsets. Nothing of size N x T is held in memory.

N examples, P puzzles, G groups (= tasks), E pairs of all groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dataset.arc.augment import SEPARATOR, dihedral
from dataset.arc.draws import Draws
from dataset.arc.expand import Expander
from dataset.arc.tasks import Pair, Subset, Task

RETRIES = 5
"""Draws per requested augmentation: a task with symmetries repeats itself, and gets fewer."""
UNCHANGED = bytes(range(10))
# The rest of a table for bytes.translate: colours are mapped, other bytes (shapes, see `_fingerprints`) are kept.
_REST = bytes(range(10, 256))
_SHAPE = 128


@dataclass(eq=False)
class SplitPlan:
    """One split: its puzzles and examples in order."""

    side: int
    tasks: list[str] = field(default_factory=list)
    """Name of each group, [G]."""
    pairs: list[list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=list)
    """Input and output grids of each group, [G]."""
    augmentations: list[np.ndarray] = field(default_factory=list)
    """Transforms and new colours of 1 to 9 of each group's puzzles, [G] arrays uint8 [its puzzles, 10]."""
    offsets: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.uint8))
    """Row and column of the first cell of each example; uint8 [N, 2]."""
    demonstrations: list[int] = field(default_factory=list)
    """How many of the first pairs of each group are demonstrations, [G]."""

    def add(
        self,
        task: str,
        pairs: list[tuple[np.ndarray, np.ndarray]],
        augmentations: np.ndarray,
        demonstrations: int,
    ) -> None:
        """Append a group."""
        self.tasks.append(task)
        self.pairs.append(pairs)
        self.augmentations.append(augmentations)
        self.demonstrations.append(demonstrations)

    @property
    def num_demos(self) -> np.ndarray:
        """How many examples of each puzzle are demonstrations; int64 [P]."""
        return np.repeat(np.array(self.demonstrations, dtype=np.int64), [len(rows) for rows in self.augmentations])

    @property
    def group_indices(self) -> np.ndarray:
        """Puzzle offsets; int64 [G + 1]."""
        return np.cumsum([0, *map(len, self.augmentations)])

    @property
    def puzzle_indices(self) -> np.ndarray:
        """Example offsets; int64 [P + 1]."""
        sizes = [np.full(len(a), len(p)) for a, p in zip(self.augmentations, self.pairs, strict=True)]
        return np.concatenate([np.zeros(1, dtype=np.int64), *sizes]).cumsum()

    def names(self) -> Iterator[str]:
        """The name of each puzzle, [P]; the first of a group has the task's own."""
        for task, rows in zip(self.tasks, self.augmentations, strict=True):
            digits = (rows + np.uint8(ord("0"))).tobytes().decode()
            yield task
            for place in range(10, len(digits), 10):
                colours = digits[place + 1 : place + 10]
                yield f"{task}{SEPARATOR}t{digits[place]}{SEPARATOR}0{colours}"

    def expander(self) -> Expander:
        """The expander of the split's examples into tokens."""
        grids = [grid for pairs in self.pairs for pair in pairs for grid in pair]
        return Expander(
            side=self.side,
            cells=np.concatenate([np.empty(0, dtype=np.uint8), *(grid.ravel() for grid in grids)]),
            shapes=np.array([grid.shape for grid in grids], dtype=np.uint8).reshape(-1, 2),
            augmentations=np.concatenate([np.empty((0, 10), dtype=np.uint8), *self.augmentations]),
            offsets=self.offsets,
            puzzle_indices=self.puzzle_indices,
            group_indices=self.group_indices,
        )


@dataclass(eq=False)
class BuildPlan:
    """Both splits of a data set before they are expanded into tokens."""

    train: SplitPlan
    test: SplitPlan
    test_tasks: dict[str, Task]
    """The tasks of the test subsets, whose tests are the test split."""
    skipped: dict[str, int]
    """Counts of what was left out, by reason: tasks and pairs that do not fit, training tests without an answer."""
    not_full: dict[str, int]
    """Tasks with fewer different augmentations than requested -> the number of their puzzles."""
    unsolved: int
    """Tests of the test split without an answer, which get a 1x1 grid of 0 as in the public builder."""


def augmentations_of(pairs: Sequence[tuple[np.ndarray, np.ndarray]], count: int, draws: Draws) -> np.ndarray:
    """The identity and up to `count` augmentations that give different sets of pairs; uint8 [n, 10]."""
    variants = [_fingerprints(pairs, tid) for tid in range(8)] if count else []
    rows, seen = [b"\0" + UNCHANGED[1:]], {tuple(sorted(fingerprint)) for fingerprint in variants[:1]}
    for _ in range(RETRIES * count):
        tid, colours = draws.augmentation()
        table = b"\0" + colours + _REST
        key = tuple(sorted([fingerprint.translate(table) for fingerprint in variants[tid]]))
        if key not in seen:
            seen.add(key)
            rows.append(bytes([tid]) + colours)
            if len(rows) > count:
                break
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 10)


def _fingerprints(pairs: Sequence[tuple[np.ndarray, np.ndarray]], tid: int) -> list[bytes]:
    """Shape and cells of both grids of each transformed pair. Equal bytes mean equal pairs."""
    grids = [[dihedral(grid, tid) for grid in pair] for pair in pairs]
    return [b"".join(bytes(_SHAPE + size for size in grid.shape) + grid.tobytes() for grid in pair) for pair in grids]


def make_plan(
    subsets: Sequence[Subset],
    *,
    test_sets: Sequence[str],
    num_aug: int,
    seed: int,
    side: int,
    data_mode: str = "embedding",
    translate: bool = True,
) -> BuildPlan:
    """Draw everything random of a data set.

    Args:
        test_sets: subsets that are held out: their tests, in encoder mode the whole tasks.
        translate: whether training examples are translated to random places on the canvas.
    """
    draws = Draws(seed)
    plan = BuildPlan(SplitPlan(side), SplitPlan(side), {}, {}, {}, 0)
    add = _add_whole_task if data_mode == "encoder" else _add_task
    for subset in subsets:
        tasks = list(subset.tasks)
        draws.shuffle(tasks)
        for task in tasks:
            add(plan, task, subset.name in test_sets, num_aug, draws)
    plan.train.offsets = _random_offsets(plan.train, draws) if translate else _top_left(plan.train)
    plan.test.offsets = _top_left(plan.test)
    return plan


def _top_left(split: SplitPlan) -> np.ndarray:
    return np.zeros((int(split.puzzle_indices[-1]), 2), dtype=np.uint8)


def _usable(plan: BuildPlan, task: Task, held_out: bool) -> Sequence[Pair]:
    """The pairs that fit the canvas and have the answers they need; none if no demonstration is among them."""
    side = plan.train.side
    usable = task.within(side).pairs
    if len(usable) < len(task.pairs):
        _count(plan.skipped, f"pairs that do not fit {side}x{side}", len(task.pairs) - len(usable))
    if not any(pair.kind == "train" for pair in usable):
        _count(plan.skipped, f"tasks without a demonstration that fits {side}x{side}", 1)
        return []
    if not held_out and (unsolved := [pair for pair in usable if pair.output is None]):
        _count(plan.skipped, "tests of training tasks without an answer", len(unsolved))
        usable = tuple(pair for pair in usable if pair.output is not None)
    return usable


def _add_whole_task(plan: BuildPlan, task: Task, held_out: bool, num_aug: int, draws: Draws) -> None:
    """Encoder mode: the whole task in one split, demonstrations first, then tests."""
    usable = _usable(plan, task, held_out)
    demonstrations, tests = ([pair for pair in usable if pair.kind == kind] for kind in ("train", "test"))
    if not tests:
        if usable:
            _count(plan.skipped, "tasks without a test that can be asked", 1)
        return
    pairs = _grids(demonstrations + tests)
    rows = augmentations_of(pairs, num_aug, draws)
    if len(rows) <= num_aug:
        plan.not_full[task.name] = len(rows)
    (plan.test if held_out else plan.train).add(task.name, pairs, rows, len(demonstrations))
    if held_out:
        plan.test_tasks[task.name] = task
        plan.unsolved += sum(pair.output is None for pair in tests)


def _add_task(plan: BuildPlan, task: Task, held_out: bool, num_aug: int, draws: Draws) -> None:
    """Embedding mode: demonstrations are trained on, also those of held-out tasks."""
    usable = _usable(plan, task, held_out)
    if not usable:
        return
    tests = [pair for pair in usable if pair.kind == "test" and held_out]
    trained = [pair for pair in usable if pair.kind == "train" or not held_out]
    train, test = _grids(trained), _grids(tests)
    rows = augmentations_of(train + test, num_aug, draws)
    if len(rows) <= num_aug:
        plan.not_full[task.name] = len(rows)
    plan.train.add(task.name, train, rows, len(train))
    if tests:
        plan.test.add(task.name, test, rows, 0)
        plan.test_tasks[task.name] = task
        plan.unsolved += sum(pair.output is None for pair in tests)


def _count(skipped: dict[str, int], reason: str, more: int) -> None:
    skipped[reason] = skipped.get(reason, 0) + more


def _grids(pairs: Sequence[Pair]) -> list[tuple[np.ndarray, np.ndarray]]:
    unknown = np.zeros((1, 1), dtype=np.uint8)
    return [(pair.input, unknown if pair.output is None else pair.output) for pair in pairs]


def _random_offsets(split: SplitPlan, draws: Draws) -> np.ndarray:
    """Row and column of every example [N, 2]: one of each puzzle at the top left, the others anywhere they fit."""
    out = bytearray()
    up_to = draws.up_to
    for pairs, augmentations in zip(split.pairs, split.augmentations, strict=True):
        room = [
            [
                tuple(
                    split.side - max(a, b) for a, b in zip(*(dihedral(grid, tid).shape for grid in pair), strict=True)
                )
                for pair in pairs
            ]
            for tid in range(8)
        ]
        last = len(pairs) - 1
        for tid in augmentations[:, 0].tolist():
            stays = up_to(last)
            for number, (rows, columns) in enumerate(room[tid]):
                if number == stays:
                    out += b"\0\0"
                else:
                    row = up_to(rows)
                    out += bytes((row, up_to(columns)))
    return np.frombuffer(bytes(out), dtype=np.uint8).reshape(-1, 2)


def number_identifiers(plan: BuildPlan, start: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(names by identifier, identifiers of the training puzzles, of the test puzzles), numbered from `start`.

    Names are numbered in the order of their first occurrence, training puzzles first; a name that two subsets share has
    one number.
    """
    numbers: dict[str, int] = {}
    identifiers = [
        np.fromiter((numbers.setdefault(name, start + len(numbers)) for name in split.names()), dtype=np.int32)
        for split in (plan.train, plan.test)
    ]
    return ["<blank>"] * start + list(numbers), identifiers[0], identifiers[1]
