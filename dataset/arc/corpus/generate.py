"""Draws subsets of tasks from families: seeded, and no test is a training pair, transformed or recoloured.

`training` and `evaluation` have tasks of the same families; `novel` has tasks of families that training never sees, to
measure a model that reads demonstrations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from dataset.arc.corpus import figures, layout, shown
from dataset.arc.corpus.parts import SMALLEST_SIDE, Family, Rule
from dataset.arc.leakage import plain_key, symmetric_key
from dataset.arc.tasks import Pair, Subset, Task
from engine.distributed import keyed_numpy
from engine.io import RunFailure, UsageError, did_you_mean, progress

FAMILIES: Mapping[str, Family] = {
    family.__name__: family
    for family in (
        layout.recolour,
        layout.exchange,
        layout.keep,
        layout.negative,
        layout.chequered,
        layout.most_frequent,
        layout.turned,
        layout.shifted,
        layout.gravity,
        layout.enlarged,
        layout.reduced,
        layout.repeated,
        layout.cut_out,
        layout.framed,
        layout.edged,
        figures.filled,
        figures.hollowed,
        figures.cleaned,
        figures.patched,
        figures.rays,
        figures.crossed,
        figures.connected,
        figures.diagonals,
        figures.haloed,
        figures.either,
        figures.both,
        figures.exactly_one,
        figures.neither,
        figures.completed,
        figures.counted,
        figures.ordered,
        figures.chosen,
        figures.without_repeats,
        shown.permuted,
        shown.striped,
        shown.bordered,
        shown.grounded,
        shown.stamped,
        shown.targeted,
        shown.ringed,
    )
}
HELD_OUT = ("reduced", "exchange", "framed", "rays", "neither", "chosen")
"""Families that are never trained on, one of each kind."""
PRESETS: Mapping[str, tuple[str, ...]] = {
    "all": tuple(name for name, family in FAMILIES.items() if family.__module__ != shown.__name__),
    "first": ("recolour", "keep", "negative", "turned", "shifted", "filled", "edged", "exchange", "framed"),
    "few": ("recolour", "permuted", "striped", "bordered", "grounded", "stamped", "targeted", "ringed"),
}
"""Named choices of families: `all` but those of shown.py, `first` for those that small models learn within minutes,
`few` for eight whose tests can hardly be answered without the demonstrations."""
SUBSETS = ("training", "evaluation", "novel")
TRIES = 200


@dataclass(frozen=True, kw_only=True)
class CorpusPlan:
    """A generated corpus."""

    side: int = 10
    """Side of the largest grid."""
    families: str = "all"
    """A key of PRESETS, or families joined by commas; one named twice has twice the share of training."""
    num_train: int = 200
    num_test: int = 50
    """Tasks of the training families that are held out."""
    num_novel: int = 30
    """Tasks of the held-out families."""
    demonstrations: tuple[int, int] = (3, 5)
    """Fewest and most demonstrations of a task; each task has one test."""
    seed: int = 0

    def names(self) -> tuple[list[str], list[str]]:
        """(families to train on, repeated by their shares; held-out ones). Raises: UsageError for an unknown name."""
        chosen = PRESETS.get(self.families) or tuple(name for name in self.families.split(",") if name)
        for name in chosen:
            if name not in FAMILIES:
                raise UsageError(f"--families {name}: " + did_you_mean(name, [*PRESETS, *FAMILIES]))
        return [name for name in chosen if name not in HELD_OUT], [name for name in chosen if name in HELD_OUT]

    def check(self) -> None:
        """Raise UsageError, naming the flag, for values that cannot be built."""
        train, novel = self.names()
        if self.side < SMALLEST_SIDE:
            raise UsageError(
                f"--canvas and --largest must be at least {SMALLEST_SIDE} for generated tasks, got {self.side}"
            )
        low, high = self.demonstrations
        if not 1 <= low <= high:
            raise UsageError(f"--demonstrations {low} {high}: expected LO HI with 1 <= LO <= HI")
        if not train:
            raise UsageError(f"--families {self.families}: all of them are held-out families ({', '.join(HELD_OUT)})")
        if self.num_novel and not novel:
            raise UsageError(
                f"--families {self.families}: none of the held-out ones ({', '.join(HELD_OUT)}) for --num-novel"
            )
        for flag, value, least in (
            ("--num-train", self.num_train, 1),
            ("--num-test", self.num_test, 1),
            ("--num-novel", self.num_novel, 0),
        ):
            if value < least:
                raise UsageError(f"{flag} must be at least {least}, got {value}")


def generate(plan: CorpusPlan) -> list[Subset]:
    """Draw the tasks of `plan`: training, evaluation and, unless num_novel is 0, novel. Raises: UsageError."""
    plan.check()
    train, novel = plan.names()
    trained: set[bytes] = set()
    subsets = []
    for name, families, count in zip(
        SUBSETS,
        (train, [*dict.fromkeys(train)], [*dict.fromkeys(novel)]),
        (plan.num_train, plan.num_test, plan.num_novel),
        strict=True,
    ):
        tasks = []
        for number in progress(range(count), total=count, label=f"{name} tasks"):
            task = _task(plan, name, families[number % len(families)], number, trained)
            for pair in task.pairs if name == SUBSETS[0] else task.of("train"):
                trained.update(_keys(pair))
            tasks.append(task)
        if tasks:
            subsets.append(Subset(name, tuple(tasks), ()))
    return subsets


def _keys(pair: Pair) -> tuple[bytes, bytes]:
    """Keys of the question and of the pair, the same for all orientations and colours."""
    assert pair.output is not None
    return symmetric_key(pair.input), symmetric_key(pair.input, pair.output)


def _task(plan: CorpusPlan, subset: str, family: str, number: int, trained: set[bytes]) -> Task:
    """Task `number` of a subset. Its test is no training pair, transformed or recoloured, if the family has others."""
    generator = keyed_numpy(plan.seed, f"arc/corpus/{plan.side}/{subset}/{family}", number)
    least, most = plan.demonstrations
    task = None
    for _ in range(TRIES):
        rule = FAMILIES[family](generator, plan.side)
        count = int(generator.integers(least, most + 1)) + 1
        pairs = _pairs(rule, generator, count)
        if pairs is None:
            continue
        task = Task(f"{family}_{subset[0]}{number:04}", Path("generated"), tuple(pairs))
        test = _keys(pairs[-1])
        if trained.isdisjoint(test) and not any(set(test) & set(_keys(pair)) for pair in pairs[:-1]):
            return task
    if task is None:
        raise RunFailure(f"the family {family} gave no task in {TRIES} tries: choose a larger --canvas")
    return task


def _pairs(rule: Rule, generator: Generator, count: int) -> list[Pair] | None:
    """`count` pairs with different questions that the rule changes, the last one a test; None if there are fewer."""
    pairs: list[Pair] = []
    seen: set[bytes] = set()
    for _ in range(20 * count):
        question, answer = (np.ascontiguousarray(grid, dtype=np.uint8) for grid in rule(generator))
        if (key := plain_key(question)) in seen or np.array_equal(question, answer):
            continue
        seen.add(key)
        pairs.append(Pair("train" if len(pairs) < count - 1 else "test", question, answer))
        if len(pairs) == count:
            return pairs
    return None
