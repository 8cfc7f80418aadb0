"""The pattern task: a marked cell shows where a pattern goes, and the demonstrations show which pattern.

The input is black with one cell of colour 1; the output is black with the task's pattern, its top left corner at that
cell. LPN (arXiv 2411.08706) uses the task, with 4x4 patterns on 10x10 grids, to test whether a search in latent space
helps. All patterns of the evaluation are new.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from dataset.arc.augment import COLOURS, LARGEST
from dataset.arc.build import ArcBuild, build_subsets
from dataset.arc.tasks import Pair, Subset, Task
from engine.distributed import keyed_numpy
from engine.io import RunFailure, UsageError

SUBSETS = ("training", "evaluation")
TRIES = 1000


@dataclass(kw_only=True)
class PatternPlan:
    """Tasks of one size."""

    side: int = 10
    """Side of the grids."""
    pattern: int = 4
    """Side of the pattern."""
    demonstrations: int = 4
    """Demonstrations of each task, which has one test."""
    num_train: int = 10_000
    num_test: int = 200
    density: float = 0.5
    """Probability that a cell of a training pattern is coloured; the others are black."""
    test_density: float | None = None
    """The same for evaluation; None: as in training. LPN's out-of-distribution tests have 0.75 and 1."""
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError, naming the flag, for values that cannot be built."""
        for flag, value, least, most in (
            ("--side", self.side, 2, LARGEST),
            ("--pattern", self.pattern, 1, self.side - 1),
            ("--demonstrations", self.demonstrations, 1, (self.side - self.pattern + 1) ** 2 - 1),
            ("--num-train", self.num_train, 1, 1_000_000),
            ("--num-test", self.num_test, 1, 100_000),
        ):
            if not least <= value <= most:
                raise UsageError(f"{flag} must be {least} to {most}, got {value}")
        for flag, share in (("--density", self.density), ("--test-density", self.test_density)):
            if share is not None and not 0 < share <= 1:
                raise UsageError(f"{flag} must be above 0 and at most 1, got {share}")


def generate(plan: PatternPlan) -> list[Subset]:
    """Draw training and evaluation tasks. Raises: UsageError; RunFailure if training leaves no new patterns."""
    plan.check()
    trained: set[bytes] = set()
    subsets = []
    counts = (plan.num_train, plan.num_test)
    for name, count, density in zip(SUBSETS, counts, (plan.density, plan.test_density or plan.density), strict=True):
        tasks, seen = [], set()
        for number in range(count):
            generator = keyed_numpy(plan.seed, f"arc/pattern/{plan.side}/{plan.pattern}/{name}", number)
            pattern = _pattern(plan, density, generator, set() if name == SUBSETS[0] else trained)
            seen.add(pattern.tobytes())
            pairs = tuple(_pairs(plan, pattern, generator))
            tasks.append(Task(f"pattern_{name[0]}{number:05}", Path("generated"), pairs))
        trained |= seen
        subsets.append(Subset(name, tuple(tasks), ()))
    return subsets


def _pattern(plan: PatternPlan, density: float, generator: Generator, known: set[bytes]) -> np.ndarray:
    """A pattern that is neither black nor in `known`; uint8 [pattern, pattern]."""
    shape = (plan.pattern, plan.pattern)
    for _ in range(TRIES):
        cells = generator.integers(1, COLOURS, shape)
        pattern = np.where(generator.random(shape) < density, cells, 0).astype(np.uint8)
        if pattern.any() and pattern.tobytes() not in known:
            return pattern
    raise RunFailure(f"--num-train {plan.num_train}: training has all patterns of {plan.pattern}x{plan.pattern}")


def _pairs(plan: PatternPlan, pattern: np.ndarray, generator: Generator) -> list[Pair]:
    room = plan.side - plan.pattern + 1
    pairs = []
    for number, place in enumerate(generator.permutation(room * room)[: plan.demonstrations + 1].tolist()):
        row, column = divmod(place, room)
        question = np.zeros((plan.side, plan.side), dtype=np.uint8)
        answer = question.copy()
        question[row, column] = 1
        answer[row : row + plan.pattern, column : column + plan.pattern] = pattern
        pairs.append(Pair("train" if number < plan.demonstrations else "test", question, answer))
    return pairs


def build_patterns(root: Path, plan: PatternPlan, *, overwrite: bool = False) -> dict[str, Any]:
    """Write the data set and return its card. Raises: UsageError."""
    plan.check()
    # There are few possible questions, so training has those of the tests, too: only whole pairs are compared.
    build = ArcBuild(
        output_dir=root,
        test_sets=SUBSETS[1:],
        num_aug=0,
        canvas=plan.side,
        data_mode="encoder",
        compact=True,
        overwrite=overwrite,
    )
    card = {
        "builder": "dataset.build_pattern_dataset",
        "source": "generated",
        "licence": "none: generated",
        "pattern": plan.pattern,
        "density": plan.density,
        "test_density": plan.test_density or plan.density,
        "pattern_seed": plan.seed,
    }
    return build_subsets(build, lambda: generate(plan), card, relations=("pair",))
