"""Batches addressed by (iteration, index): no hidden state, so a resume needs only these two numbers.

The order of groups and the choice of one puzzle per group follow the sequential algorithm of the reference (the code
of HRM, arXiv 2506.21734): a Philox stream gives one permutation of the groups per epoch, then one bounded integer per
group taken. numpy's vectorised call consumes that stream exactly like single calls, so an iteration is planned at
once. The reference keys the stream by seed + iteration (`order="published"`, its numbers exactly): iteration 2 of one
seed is iteration 1 of the next, and runs of neighbouring seeds share most of their data. `order="hashed"` keys it by a
hash of both. The examples taken of a puzzle come from a stream of our own, keyed by (seed, iteration, index), where the
reference uses a global generator that differs between ranks.

N examples, P puzzles, G groups, B rows of the global batch, T sequence length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from dataset.format import PuzzleSplit, check_agreement, combined_identifiers, widened
from engine.distributed import keyed_numpy, rank, world_size
from engine.io import UsageError

# Puzzles are drawn and sizes summed in pieces of this length, so an iteration's plan costs 4 or 8 bytes per group.
PIECE = 1 << 20
ORDERS = ("hashed", "published")
MOST_DRAWS = 1 << 29  # in an iteration, whose plan then takes 2 to 4 GB


@dataclass(frozen=True)
class _IterationPlan:
    """One iteration: the puzzle drawn for each group in order, and where each batch starts in that list."""

    puzzles: np.ndarray
    starts: np.ndarray
    """[batches + 1]"""


class TrainSampler:
    """Training batches over one or several splits, whose groups are drawn as one population.

    Iterations count from 1, batches within an iteration from 0. An iteration is `epochs_per_iter` passes over the
    groups; its last batch is dropped if it is not full. `held_back`: groups of each split that are never drawn.

    Raises: UsageError if the splits disagree or cannot fill a single batch.
    """

    DATA_MODE: ClassVar[str] = "embedding"  # path verification compares it with the entry script (SCR121)

    def __init__(
        self,
        splits: Sequence[PuzzleSplit],
        *,
        seed: int,
        global_batch_size: int,
        epochs_per_iter: int,
        order: str = "published",
        held_back: Sequence[np.ndarray] | None = None,
    ) -> None:
        if not splits:
            raise UsageError("there is no training data: data_paths is empty")
        if global_batch_size < 1 or epochs_per_iter < 1:
            raise UsageError(
                f"global_batch_size={global_batch_size} and the epochs per iteration ({epochs_per_iter}) must be >= 1"
            )
        for other in splits[1:]:
            check_agreement(splits, other.metadata, other.root / other.split / "dataset.json")
        if order not in ORDERS:
            raise UsageError(f"data_order={order!r}: choose one of {', '.join(ORDERS)}")
        self.splits, self.order = list(splits), order
        self.seed, self.global_batch_size, self.epochs_per_iter = seed, global_batch_size, epochs_per_iter
        self.num_puzzle_identifiers = combined_identifiers(splits)
        puzzle_base = np.cumsum([0] + [s.num_puzzles for s in splits])
        self._example_base = np.cumsum([0] + [s.num_examples for s in splits])
        indices = [s.group_indices[:-1] + base for s, base in zip(splits, puzzle_base, strict=False)]
        offsets = np.concatenate([*indices, puzzle_base[-1:]])  # [G + 1] puzzle offsets over all splits
        kept = np.concatenate(
            [
                np.isin(np.arange(s.num_groups), held, invert=True)
                for s, held in zip(splits, held_back or [np.empty(0, dtype=np.int64)] * len(splits), strict=True)
            ]
        )
        self._begin, self._end = offsets[:-1][kept], offsets[1:][kept]
        indices = [s.puzzle_indices[:-1] + base for s, base in zip(splits, self._example_base, strict=False)]
        self._first = np.concatenate([*indices, self._example_base[-1:]])  # [P + 1] example offsets
        self._sizes = np.diff(self._first)
        equal = len(self._sizes) > 0 and self._sizes[0] > 0 and bool((self._sizes == self._sizes[0]).all())
        self._size = int(self._sizes[0]) if equal else None
        self._counts: dict[int, int] = {}
        self._planned: tuple[int, _IterationPlan] | None = None
        if (draws := self.num_groups * epochs_per_iter) > MOST_DRAWS:
            raise UsageError(
                f"{epochs_per_iter} epochs between evaluations are planned at once, and {draws} draws are too many: "
                f"set eval_interval to at most {max(1, MOST_DRAWS // self.num_groups)} (it must divide epochs)"
            )
        if self.batches_in(1) == 0:
            offered = self.num_groups * epochs_per_iter
            raise UsageError(
                f"global_batch_size={global_batch_size} is more than an iteration of {offered} groups can "
                "fill "
                f"({splits[0].root}): lower it or raise the number of epochs per evaluation"
            )

    @property
    def num_groups(self) -> int:
        """Groups over all splits without those held back; as many puzzles are drawn per epoch."""
        return len(self._begin)

    @property
    def equal_iterations(self) -> bool:
        """Whether every iteration has the same number of batches: all puzzles have equally many examples."""
        return self._size is not None

    def batches_in(self, iteration: int) -> int:
        """Full batches of an iteration (they vary if puzzles have different numbers of examples)."""
        if self._size is not None:
            return self.num_groups * self.epochs_per_iter // -(-self.global_batch_size // self._size)
        if iteration not in self._counts:
            self._counts[iteration] = len(self._plan(iteration).starts) - 1
        return self._counts[iteration]

    def batch(self, iteration: int, index: int) -> dict[str, np.ndarray]:
        """The global batch in int32: inputs [B, T], labels [B, T] (-100 ignored), puzzle_identifiers [B]."""
        return widened(self.rows(iteration, index, 0, self.global_batch_size))

    def rows(self, iteration: int, index: int, low: int, high: int) -> dict[str, np.ndarray]:
        """Rows [low, high) of the global batch, in the types of `PuzzleSplit.rows`; only these are read from disk."""
        examples = self.example_ids(iteration, index)[low:high]
        if len(self.splits) == 1:
            return self.splits[0].rows(examples)
        source = np.searchsorted(self._example_base, examples, side="right") - 1
        out: dict[str, np.ndarray] = {}
        for number in np.unique(source):
            mine = source == number
            for key, value in self.splits[number].rows(examples[mine] - self._example_base[number]).items():
                out.setdefault(key, np.empty((len(examples), *value.shape[1:]), value.dtype))[mine] = value
        return out

    def puzzle_ids(self, iteration: int, index: int) -> np.ndarray:
        """The puzzles drawn for this batch, one per group, numbered over all splits."""
        plan = self._plan(iteration)
        if not 0 <= index < len(plan.starts) - 1:
            raise IndexError(f"iteration {iteration} has batches 0 to {len(plan.starts) - 2}, not {index}")
        return plan.puzzles[plan.starts[index] : plan.starts[index + 1]]

    def example_ids(self, iteration: int, index: int) -> np.ndarray:
        """The example of each row of the global batch, numbered over all splits; int64 [B]."""
        puzzles = self.puzzle_ids(iteration, index)
        first = self._first[puzzles]
        if self._size == 1:
            return first
        # Each puzzle's examples in random order; the last puzzle fills what is left of the batch.
        generator = keyed_numpy(self.seed, f"example_choice/{iteration}", index)
        if self._size is not None:
            shuffled = generator.random((len(puzzles), self._size)).argsort(1, kind="stable")  # half of the time
            return (first[:, None] + shuffled).ravel()[: self.global_batch_size]
        sizes = self._sizes[puzzles]
        begin = np.cumsum(sizes) - sizes
        owner = np.repeat(np.arange(len(puzzles)), sizes)
        # Sorting by owner + key / 2 shuffles each owner's members within its own range.
        member = np.argsort(owner + generator.random(len(owner)) / 2) - begin[owner]
        return (first[owner] + member)[: self.global_batch_size]

    def _plan(self, iteration: int) -> _IterationPlan:
        if iteration < 1:
            raise IndexError(f"iterations count from 1, not {iteration}")
        if self._planned is None or self._planned[0] != iteration:
            self._planned = None  # one plan at a time: drop the old one before the new one is built
            puzzles = self._draw(iteration)
            self._planned = (iteration, _IterationPlan(puzzles, self._batch_starts(puzzles)))
        return self._planned[1]

    def _draw(self, iteration: int) -> np.ndarray:
        """The puzzle of each group in the iteration's order (permutations are drawn first, then puzzles)."""
        groups = self.num_groups
        small = max(groups, len(self._sizes)) <= np.iinfo(np.int32).max
        drawn = np.empty(groups * self.epochs_per_iter, dtype=np.int32 if small else np.int64)
        if self.order == "hashed":
            generator = keyed_numpy(self.seed, "data_order", iteration)
        else:
            generator = np.random.Generator(np.random.Philox(self.seed + iteration))
        for epoch in range(self.epochs_per_iter):
            drawn[epoch * groups : (epoch + 1) * groups] = generator.permutation(groups)
        for begin in range(0, len(drawn), PIECE):
            order = drawn[begin : begin + PIECE]
            order[:] = generator.integers(self._begin[order], self._end[order])
        return drawn

    def _batch_starts(self, puzzles: np.ndarray) -> np.ndarray:
        size = self.global_batch_size
        if self._size is not None:
            per_batch = -(-size // self._size)
            return np.arange(len(puzzles) // per_batch + 1, dtype=np.int64) * per_batch
        starts = [0]
        filled = 0  # examples of earlier pieces in the open batch
        for begin in range(0, len(puzzles), PIECE):
            total = np.cumsum(self._sizes[puzzles[begin : begin + PIECE]])
            taken = -filled
            while (last := int(np.searchsorted(total, taken + size))) < len(total):
                starts.append(begin + last + 1)
                taken = int(total[last])
            filled = int(total[-1]) - taken
        return np.array(starts, dtype=np.int64)


@dataclass(frozen=True)
class EvalBudget:
    """Part of a split that is evaluated: its first groups (tasks), and the first puzzles (augmentations) of each."""

    groups: int | None = None
    puzzles: int | None = None

    def within(self, splits: Sequence[PuzzleSplit]) -> list[np.ndarray]:
        """A mask over the examples of each split; groups are counted over all splits."""
        chosen, left = [], math.inf if self.groups is None else self.groups
        for split in splits:
            number = np.arange(split.num_puzzles)
            group = np.searchsorted(split.group_indices, number, side="right") - 1
            kept = group < left
            if self.puzzles is not None:
                kept &= number - split.group_indices[group] < self.puzzles
            chosen.append(np.repeat(kept, np.diff(split.puzzle_indices)))
            left -= split.num_groups
        return chosen


class EvalSampler:
    """Evaluation batches in file order, each from one set; the last batch of a set is padded to full size.

    Args:
        max_examples: evaluate a fixed subset of this size, drawn once over all sets from (seed, "eval_subset") and kept
            in file order. The seed is not the training seed, so runs with different seeds use the same examples.
        only: the examples of each split to choose from, in place of its questions.
        budget: restricts them to the first groups, and to the first puzzles of each.

    Raises: UsageError if the batch size is below 1 or does not divide over the ranks, or max_examples is below 1.
    """

    DATA_MODE: ClassVar[str] = "embedding"

    def __init__(
        self,
        splits: Sequence[PuzzleSplit],
        global_batch_size: int,
        *,
        max_examples: int | None = None,
        seed: int = 0,
        only: Sequence[np.ndarray] | None = None,
        budget: EvalBudget | None = None,
    ) -> None:
        if global_batch_size < 1:
            raise UsageError(f"the evaluation batch size must be >= 1, got {global_batch_size}")
        if global_batch_size % world_size():
            raise UsageError(
                f"eval_batch_size={global_batch_size} does not divide over {world_size()} ranks: use a multiple of it"
            )
        if max_examples is not None and max_examples < 1:
            raise UsageError(f"eval_max_examples={max_examples} must be >= 1, or null for the whole split")
        self.splits = list(splits)
        self.global_batch_size = global_batch_size
        base = np.cumsum([0] + [s.num_examples for s in splits])
        candidates = [split.questions() for split in splits] if only is None else only
        chosen = np.concatenate(
            [np.empty(0, dtype=np.int64), *(part + low for part, low in zip(candidates, base.tolist(), strict=False))]
        )
        self.total = total = len(chosen)
        """Examples of all splits."""
        if budget is not None:
            chosen = chosen[np.concatenate(budget.within(splits))[chosen]]
        total_in_budget = len(chosen)
        if max_examples is not None and max_examples < total_in_budget:
            generator = keyed_numpy(seed, "eval_subset")
            chosen = chosen[np.sort(generator.choice(total_in_budget, max_examples, replace=False, shuffle=False))]
        drawn = f" (seed {seed})" if len(chosen) < total_in_budget else ""
        self.covers = f"{len(chosen):,} of {total:,} examples{drawn}"
        """Description of what is evaluated; figures are compared only if theirs are equal."""
        self._chosen = [chosen[(chosen >= low) & (chosen < high)] - low for low, high in pairwise(base.tolist())]
        most = max(map(len, self._chosen), default=0)
        if 4 * most < global_batch_size:  # else padding would take most of the time
            self.global_batch_size = max(1, -(-most // world_size())) * world_size()

    @property
    def num_examples(self) -> int:
        """Examples that are evaluated, without padding."""
        return sum(map(len, self._chosen))

    def __len__(self) -> int:
        """Number of global batches, the same on every rank."""
        return sum(-(-len(chosen) // self.global_batch_size) for chosen in self._chosen)

    def batches(
        self, this_rank: int | None = None, ranks: int | None = None
    ) -> Iterator[tuple[str, dict[str, np.ndarray], int]]:
        """Yield (set name, this rank's B / ranks rows, how many of them are real) for each global batch.

        Real rows come first; a rank may get a batch of padding only, so that all ranks yield equally often.

        Raises: UsageError if the batch does not divide over the ranks.
        """
        number = rank() if this_rank is None else this_rank
        count = world_size() if ranks is None else ranks
        size = self.global_batch_size
        if size % count:
            raise UsageError(f"an evaluation batch of {size} rows does not divide over {count} ranks: use a multiple")
        share = size // count
        for split, chosen in zip(self.splits, self._chosen, strict=True):
            for begin in range(0, len(chosen), size):
                low = begin + number * share
                mine = chosen[low : min(low + share, begin + size)]
                batch = split.batch(mine)
                if len(mine) < share:
                    padding = split.padding(share - len(mine))
                    batch = {key: np.concatenate([batch[key], padding[key]]) for key in batch}
                yield split.set_name, batch, len(mine)

    def __iter__(self) -> Iterator[tuple[str, dict[str, np.ndarray], int]]:
        return self.batches()
