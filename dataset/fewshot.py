"""Few-shot batches: questions with demonstrations of their puzzle (`data_mode: encoder`).

Every slot of the batch reads its own stream: example n of slot s depends on (seed, s, n) alone. So a loader has no
hidden state, a slot takes its next example when the last one has halted, and nothing is loaded in vain. The streams are
interleaved: if all slots advance equally fast, each pass over the groups visits every group once.

N examples, P puzzles, G groups, B rows, K demonstrations at most, T sequence length.
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
"""Passes over the groups whose random numbers are cached: slots that halt early are ahead of others."""


@dataclass(frozen=True, kw_only=True)
class Showing:
    """Which example of a puzzle is the question in training, and which are its demonstrations."""

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
    """A split whose batches have demonstrations; `batch` gives each question all those of its puzzle.

    Adds to the keys of `PuzzleSplit.batch`: demo_inputs and demo_labels [n, K, T] int32 (pad_id where there is no
    demonstration), demo_mask [n, K] bool, group_ids [n] int32 (-1 for padding).
    """

    width: int
    """K"""
    first_group: int = 0
    """Index of its first group among those of all splits."""

    def demonstrations(self, examples: np.ndarray) -> np.ndarray:
        """The demonstrations of each example's puzzle, in file order: [n] -> int64 [n, K], -1 for none."""
        assert self.num_demos is not None
        puzzles, place = self.puzzles_of(examples), np.arange(self.width)
        shown = self.puzzle_indices[puzzles][:, None] + place
        return np.where(place < self.num_demos[puzzles][:, None], shown, -1)

    def batch(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        return self.batch_with(examples, self.demonstrations(examples))

    def batch_with(self, examples: np.ndarray, demonstrations: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of examples [n] with the given demonstrations [n, K] (example indices, -1 for none)."""
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
    """The splits with demonstrations, at most `width` of each puzzle; None: the most that a puzzle has.

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
        showing: how questions and demonstrations are chosen.
        held_back: groups of each split that are never drawn.

    Raises: UsageError if the splits disagree, have no demonstrations, or all groups are held back.
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
        # leave-one-out shows tests, too: all pairs of the puzzle but the one that is asked
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
        """K of every batch."""
        return self.splits[0].width

    @property
    def num_groups(self) -> int:
        """Groups over all splits, without those held back."""
        return len(self._groups)

    @property
    def examples_per_epoch(self) -> int:
        """Examples that all slots together take in a pass over the groups: one of each group."""
        return self.num_groups

    def take(self, slots: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of example positions[i] (from 0) of slot slots[i], a row for each i; keys as in `FewShotSplit`.

        A function of seed, slot and position alone: the same for any number of ranks and any earlier calls.
        """
        groups, numbers = self._drawn(slots, positions)
        owner = np.searchsorted(self._first_groups, groups, side="right") - 1
        out = self.splits[0].padding(len(groups))
        for number in np.unique(owner):
            mine = owner == number
            split = self.splits[number]
            for key, value in split.batch_with(*self._choose(split, groups[mine], numbers[mine])).items():
                out[key][mine] = value
        return out

    def _drawn(self, slots: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The group of each row [n] and its uniform random numbers [n, 3 + 2 pairs]."""
        if ((slots < 0) | (slots >= self.global_batch_size) | (positions < 0)).any():
            raise IndexError(f"slots are 0 to {self.global_batch_size - 1}, positions count from 0")
        drawn = positions.astype(np.int64) * self.global_batch_size + slots
        passes, index = np.divmod(drawn, self.num_groups)
        groups = np.empty(len(drawn), dtype=np.int64)
        numbers = np.empty((len(drawn), 3 + 2 * self._pairs))
        for number in np.unique(passes).tolist():
            mine = passes == number
            order, table = self._pass(number)
            groups[mine], numbers[mine] = order[index[mine]], table[index[mine]]
        return groups, numbers

    def _pass(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the groups in a pass [G], and the uniform random numbers of each [G, 3 + 2 pairs]."""
        if number not in self._passes:
            generator = keyed_numpy(self.seed, "few_shot", number)
            order = self._groups[generator.permutation(self.num_groups)]
            self._passes[number] = order, generator.random((self.num_groups, 3 + 2 * self._pairs))
        self._passes.move_to_end(number)
        if len(self._passes) > KEPT:
            self._passes.popitem(last=False)
        return self._passes[number]

    def _choose(self, split: FewShotSplit, groups: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(questions [n], demonstrations [n, K]) for groups of one split and their uniform random numbers."""
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
        # Which pairs of the puzzle may be shown: its demonstrations, or all of its pairs; never the question.
        pair = np.arange(self._pairs)
        candidate = (pair < np.where(any_pair, sizes, demos)[:, None]) & (pair != asked[:, None])
        order_keys, drop_keys = numbers[:, 3 : 3 + self._pairs], numbers[:, 3 + self._pairs :]
        # dropout removes demonstrations in the order of their keys, and leaves min_demos of them
        rank = np.where(candidate, drop_keys, 2.0).argsort(axis=1).argsort(axis=1)
        kept = candidate & (
            (drop_keys >= showing.demo_dropout) | (rank >= (candidate.sum(1) - showing.min_demos)[:, None])
        )
        keys = order_keys if showing.demo_order == "random" else np.broadcast_to(pair / self._pairs, kept.shape)
        chosen = np.where(kept, keys, 2.0).argsort(axis=1)[:, : self.max_demos]
        shown = np.where(np.take_along_axis(kept, chosen, axis=1), first[:, None] + chosen, -1)
        return first + asked, shown


class FewShotEvalSampler(EvalSampler):
    """Evaluation batches in file order: every question once, with all demonstrations of its puzzle.

    Keys as in `FewShotSplit`; padding rows have no demonstration. Arguments as in `EvalSampler`.
    """

    DATA_MODE: ClassVar[str] = MODE

    def __init__(self, splits: Sequence[PuzzleSplit], global_batch_size: int, **options: Any) -> None:
        super().__init__(few_shot(splits), global_batch_size, **options)
