"""Training groups held back for validation: `best` and early stopping use them, the test split is for the end.

Which ones depends on a seed of their own (not the training seed) and on the number of groups, so all runs on a data set
select on the same examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset.format import PuzzleSplit
from dataset.sampler import EvalSampler
from engine.distributed import keyed_numpy
from engine.io import UsageError, print_rank0

SHARE, MOST = 20, 256
"""One group in 20, at most 256: enough to measure an accuracy of 0.9 to within 0.04."""


@dataclass(frozen=True)
class HeldBack:
    """The data on which a run selects its best checkpoint."""

    groups: list[np.ndarray] | None
    """Ascending, for each training split; None: the run selects on the test split, or not at all."""
    sampler: EvalSampler | None
    splits: dict[str, str]
    """Prefix of a metric's name -> description of its data."""

    @property
    def prefix(self) -> str:
        """Prefix of the metric that selects."""
        return "eval" if self.sampler is None else "val"


def hold_back(train: Sequence[PuzzleSplit], config: Any) -> HeldBack:
    """Choose what a run selects on, from its config and training splits.

    Only evaluations during training select anything, so without them every group is trained on.
    """
    if config.eval_interval is None or config.eval_interval == config.epochs:
        return HeldBack(None, None, {"eval": "of the test split, at the end"})
    groups = None
    if config.select_on == "validation":
        groups = choose_groups(train, seed=config.eval_seed, validation_groups=config.validation_groups)
        if groups is None:
            print_rank0(
                "warning: no validation groups: the puzzles have their own identifiers, and an untrained one "
                "carries no information; best and early stopping use the test split (select_on=test does so unwarned)"
            )
    if groups is None:
        return HeldBack(None, None, {"eval": "of the test split, which best and early stopping use too"})
    sampler = EvalSampler(
        train,
        config.eval_batch_size or config.global_batch_size,
        max_examples=config.eval_max_examples,
        seed=config.eval_seed,
        only=[
            examples_of(split, held) for split, held in zip(train, _first(groups, config.eval_max_groups), strict=True)
        ],
    )
    held, total = sum(map(len, groups)), sum(split.num_groups for split in train)
    splits = {
        "val": f"of {held} of {total} training groups, held back: best and early stopping use them",
        "eval": "of the test split, at the end: the figure to report",
    }
    return HeldBack(groups, sampler, splits)


def validation_count(groups: int, validation_groups: int | None = None) -> int:
    """How many of `groups` training groups are held back. Raises: UsageError if none would be left to train on."""
    if validation_groups is not None and validation_groups >= groups:
        raise UsageError(
            f"validation_groups={validation_groups}: the training data have {groups} groups, lower it or select_on=test"
        )
    return min(MOST, max(1, groups // SHARE)) if validation_groups is None else validation_groups


def choose_groups(
    splits: Sequence[PuzzleSplit], *, seed: int, validation_groups: int | None = None
) -> list[np.ndarray] | None:
    """The groups of each split to hold back, ascending; None if none can be.

    Groups with puzzle identifiers of their own cannot: a held-back group would have an untrained embedding. A model
    that is shown demonstrations has no embeddings, so any group can be held back.
    """
    sizes = [split.num_groups for split in splits]
    total = sum(sizes)
    if total < 2:
        return None
    count = validation_count(total, validation_groups)
    chosen = np.sort(keyed_numpy(seed, "validation").choice(total, count, replace=False, shuffle=False))
    bases = np.cumsum([0, *sizes])
    held = [chosen[(chosen >= low) & (chosen < low + size)] - low for low, size in zip(bases, sizes, strict=False)]
    if splits[0].metadata.data_mode == "encoder":
        return held
    return held if all(_shared_identifiers(split, groups) for split, groups in zip(splits, held, strict=True)) else None


def _shared_identifiers(split: PuzzleSplit, groups: np.ndarray) -> bool:
    """Whether every identifier of these groups also occurs in the other groups."""
    owner = np.repeat(np.arange(split.num_groups), np.diff(split.group_indices))
    out = np.isin(owner, groups)
    return bool(np.isin(split.puzzle_identifiers[out], split.puzzle_identifiers[~out]).all())


def _first(groups: Sequence[np.ndarray], most: int | None) -> list[np.ndarray]:
    """The first `most` groups over all splits."""
    before = np.cumsum([0, *map(len, groups)])
    return [held if most is None else held[: max(0, most - begin)] for held, begin in zip(groups, before, strict=False)]


def examples_of(split: PuzzleSplit, groups: np.ndarray) -> np.ndarray:
    """The questions of the first puzzle of each group; its other puzzles are augmented copies."""
    puzzles = split.group_indices[groups]
    ranges = [np.arange(split.puzzle_indices[p], split.puzzle_indices[p + 1]) for p in puzzles]
    return np.intersect1d(np.concatenate([np.empty(0, dtype=np.int64), *ranges]), split.questions())
