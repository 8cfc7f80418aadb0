"""Questions with demonstrations: what a model that learns a rule from examples is fed (`data_mode: encoder`).

Every slot of a run walks its own stream: example n of slot s is drawn from (seed, s, n) alone, so a loader has no
hidden state, a slot takes its next example when it is ready for it, and nothing is loaded needlessly. The streams are
interleaved: were all slots equally fast, each pass over the groups would meet every group once.

N examples, P puzzles, G groups, B rows, K demonstrations at most, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from dataset.format import PuzzleSplit, check_agreement, combined_identifiers
from dataset.metadata import IGNORE
from dataset.sampler import EvalSampler
from engine.distributed import keyed_numpy
from engine.fields import Range, check_fields
from engine.io import UsageError

MODE = "encoder"
KEPT = 64
"""Passes over the groups whose random numbers are kept: slots that halt early are ahead of others."""


@dataclass(frozen=True, kw_only=True)
class Showing:
    """Which example of a puzzle is asked in training, and which are shown with it."""

    query_policy: Literal["test_only", "leave_one_out", "mixed"] = "mixed"
    """What is asked: a test, shown all demonstrations; any pair, shown all others; or by chance one of the two."""
    demo_order: Literal["random", "file"] = "random"
    """Order of the demonstrations of a training example."""
    demo_dropout: Annotated[float, Range(0, below=1)] = 0.0
    """Chance of each demonstration to be left out of a training example."""
    min_demos: Annotated[int, Range(1)] = 1
    """Demonstrations that dropout leaves, where a puzzle has so many."""
    max_demos: Annotated[int, Range(1)] = 10
    """Most demonstrations of an example; evaluation shows all that there are."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.min_demos > self.max_demos:
            raise ValueError(f"min_demos={self.min_demos} is more than max_demos={self.max_demos}")


@dataclass(frozen=True, eq=False, kw_only=True)
class FewShotSplit(PuzzleSplit):
    """A split whose batches come with demonstrations: `batch` shows each question all of its puzzle's.

    Beside the keys of `PuzzleSplit.batch`, all int32 but the mask: demo_inputs and demo_labels [n, K, T] (pad_id where
    there is no demonstration), demo_mask [n, K] bool, group_ids [n] (-1 for padding).
    """

    width: int
    """K"""
    first_group: int = 0
    """Number of its first group among those of all splits."""

    def demonstrations(self, examples: np.ndarray) -> np.ndarray:
        """The demonstrations of the puzzle of each example [n], in the order of the file; int64 [n, K], -1 for none."""
        assert self.num_demos is not None
        puzzles, place = self.puzzles_of(examples), np.arange(self.width)
        shown = self.puzzle_indices[puzzles][:, None] + place
        return np.where(place < self.num_demos[puzzles][:, None], shown, -1)

    def batch(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        return self.shown(examples, self.demonstrations(examples))

    def shown(self, examples: np.ndarray, demonstrations: np.ndarray) -> dict[str, np.ndarray]:
        """Examples [n], each with these demonstrations [n, K] (example numbers, -1 for none)."""
        mask = demonstrations >= 0
        pairs = super().batch(np.concatenate([examples, demonstrations[mask]]))  # only what exists is read
        out = self.padding(len(examples))
        for key in ("inputs", "labels", "puzzle_identifiers"):
            out[key][:] = pairs[key][: len(examples)]
        out["demo_inputs"][mask] = pairs["inputs"][len(examples) :]
        labels = pairs["labels"][len(examples) :]
        out["demo_labels"][mask] = np.where(labels == IGNORE, self.metadata.pad_id, labels)
        out["demo_mask"][:] = mask
        puzzles = self.puzzles_of(examples)
        out["group_ids"][:] = np.searchsorted(self.group_indices, puzzles, side="right") - 1 + self.first_group
        return out

    def padding(self, rows: int) -> dict[str, np.ndarray]:
        shape = (rows, self.width, self.metadata.seq_len)
        return {
            **super().padding(rows),
            "demo_inputs": np.full(shape, self.metadata.pad_id, dtype=np.int32),
            "demo_labels": np.full(shape, self.metadata.pad_id, dtype=np.int32),
            "demo_mask": np.zeros(shape[:2], dtype=bool),
            "group_ids": np.full(rows, -1, dtype=np.int32),
        }


def few_shot(splits: Sequence[PuzzleSplit], width: int | None = None) -> list[FewShotSplit]:
    """The same splits with demonstrations, at most `width` of each puzzle; None: all that any puzzle has.

    Raises: UsageError for data without demonstrations.
    """
    for split in splits:
        if split.num_demos is None:
            raise UsageError(
                f"{split.root} has data_mode={split.metadata.data_mode}, no demonstrations: expected {MODE}, which "
                "`python -m dataset.build_arc_dataset_encoder` writes"
            )
    if width is None:
        width = max((int(split.num_demos.max(initial=1)) for split in splits if split.num_demos is not None), default=1)
    first = np.cumsum([0, *(split.num_groups for split in splits)]).tolist()
    return [
        FewShotSplit(
            **{field.name: getattr(split, field.name) for field in dataclasses.fields(PuzzleSplit)},
            width=width,
            first_group=begin,
        )
        for split, begin in zip(splits, first, strict=False)
    ]


class FewShotSampler:
    """Training examples by slot and position.

    Args:
        global_batch_size: number of slots over all ranks.
        showing: what is asked and shown.
        held_back: groups of each split that are never drawn.

    Raises: UsageError where the splits disagree, have no demonstrations, or all groups are held back.
    """

    DATA_MODE: ClassVar[str] = MODE

    def __init__(
        self,
        splits: Sequence[PuzzleSplit],
        *,
        seed: int,
        global_batch_size: int,
        showing: Showing | None = None,
        held_back: Sequence[np.ndarray] | None = None,
    ) -> None:
        if not splits:
            raise UsageError("there is no training data: data_paths is empty")
        if global_batch_size < 1:
            raise UsageError(f"global_batch_size={global_batch_size} must be >= 1")
        for other in splits[1:]:
            check_agreement(splits, other.metadata, other.root / other.split / "dataset.json")
        self.seed, self.global_batch_size, self.showing = seed, global_batch_size, showing or Showing()
        # a demonstration is a target, too: leave-one-out shows the tests, one pair less than there are
        all_pairs = max(int(np.diff(split.puzzle_indices).max(initial=2)) for split in splits)
        own = few_shot(splits)
        most = own[0].width if self.showing.query_policy == "test_only" else all_pairs - 1
        self.splits = few_shot(splits, min(most, self.showing.max_demos))
        self._pairs = all_pairs
        self.num_puzzle_identifiers = combined_identifiers(splits)
        held = held_back or [np.empty(0, dtype=np.int64)] * len(splits)
        self._groups = np.concatenate(
            [
                np.setdiff1d(np.arange(split.num_groups), out) + split.first_group
                for split, out in zip(self.splits, held, strict=True)
            ]
        )
        if not len(self._groups):
            raise UsageError(f"{splits[0].root}: no training group is left")
        self._first_groups = np.array([split.first_group for split in self.splits])
        self._passes: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    @property
    def max_demos(self) -> int:
        """K, of every batch."""
        return self.splits[0].width

    @property
    def num_groups(self) -> int:
        """Groups over all splits, without those held back."""
        return len(self._groups)

    @property
    def examples_per_epoch(self) -> int:
        """Examples of a pass over the groups, one of each: what all slots together take in an epoch."""
        return self.num_groups

    def take(self, slots: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Example positions[i] (from 0) of slot slots[i], one row for each i; see `FewShotSplit` for the keys.

        A function of the seed, slot and position: equal for any number of ranks, and whatever was asked before.
        """
        groups, numbers = self._drawn(slots, positions)
        owner = np.searchsorted(self._first_groups, groups, side="right") - 1
        out = self.splits[0].padding(len(groups))
        for number in np.unique(owner):
            mine = owner == number
            split = self.splits[number]
            for key, value in split.shown(*self._choose(split, groups[mine], numbers[mine])).items():
                out[key][mine] = value
        return out

    def _drawn(self, slots: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The group of each row [n] and its uniform numbers [n, 3 + 2 pairs]."""
        if ((slots < 0) | (slots >= self.global_batch_size) | (positions < 0)).any():
            raise IndexError(f"slots are 0 to {self.global_batch_size - 1}, positions count from 0")
        place = positions.astype(np.int64) * self.global_batch_size + slots
        turns, index = np.divmod(place, self.num_groups)
        groups = np.empty(len(place), dtype=np.int64)
        numbers = np.empty((len(place), 3 + 2 * self._pairs))
        for turn in np.unique(turns).tolist():
            mine = turns == turn
            order, table = self._pass(turn)
            groups[mine], numbers[mine] = order[index[mine]], table[index[mine]]
        return groups, numbers

    def _pass(self, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the groups in this pass, and uniform numbers of each place in it."""
        if turn not in self._passes:
            generator = keyed_numpy(self.seed, "few_shot", turn)
            order = self._groups[generator.permutation(self.num_groups)]
            self._passes[turn] = order, generator.random((self.num_groups, 3 + 2 * self._pairs))
        self._passes.move_to_end(turn)
        if len(self._passes) > KEPT:
            self._passes.popitem(last=False)
        return self._passes[turn]

    def _choose(self, split: FewShotSplit, groups: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(what is asked [n], what is shown [n, K]) for groups of one split and their uniform numbers."""
        assert split.num_demos is not None
        local, showing = groups - split.first_group, self.showing
        begin, end = split.group_indices[local], split.group_indices[local + 1]
        puzzle = begin + (numbers[:, 0] * (end - begin)).astype(np.int64)
        first, sizes = split.puzzle_indices[puzzle], np.diff(split.puzzle_indices)[puzzle]
        demos = split.num_demos[puzzle]
        share = {"test_only": 0.0, "leave_one_out": 1.0, "mixed": 0.5}[showing.query_policy]
        any_pair = numbers[:, 1] < share
        least = np.where(any_pair, 0, demos)
        asked = least + (numbers[:, 2] * (sizes - least)).astype(np.int64)
        # A key for each pair of the puzzle: those that may not be shown last, then those that dropout leaves out.
        pair = np.arange(self._pairs)
        candidate = (pair < np.where(any_pair, sizes, demos)[:, None]) & (pair != asked[:, None])
        order_keys, drop_keys = numbers[:, 3 : 3 + self._pairs], numbers[:, 3 + self._pairs :]
        # dropout: in the order of their keys the demonstrations go, until min_demos are left
        rank = np.where(candidate, drop_keys, 2.0).argsort(axis=1).argsort(axis=1)
        kept = candidate & (
            (drop_keys >= showing.demo_dropout) | (rank >= (candidate.sum(1) - showing.min_demos)[:, None])
        )
        keys = order_keys if showing.demo_order == "random" else np.broadcast_to(pair / self._pairs, kept.shape)
        chosen = np.where(kept, keys, 2.0).argsort(axis=1)[:, : self.max_demos]
        shown = np.where(np.take_along_axis(kept, chosen, axis=1), first[:, None] + chosen, -1)
        return first + asked, shown


class FewShotEvalSampler(EvalSampler):
    """Evaluation in file order: every question of every puzzle once, with all demonstrations of its puzzle.

    Batches have the keys of `FewShotSplit`; padding rows have no demonstration. Arguments as of `EvalSampler`.
    """

    DATA_MODE: ClassVar[str] = MODE

    def __init__(self, splits: Sequence[PuzzleSplit], global_batch_size: int, **options: Any) -> None:
        super().__init__(few_shot(splits), global_batch_size, **options)
