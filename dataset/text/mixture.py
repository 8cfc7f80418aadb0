"""Chooses the data set of each step: a function of (seed, step), so a resume needs no stored state.

The whole global batch of a step is from one data set, on every rank and in every micro-batch.
K data sets, I items of the list of their names (a name may occur more than once), p [I] weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.distributed import keyed_numpy
from engine.io import UsageError

# Steps planned at once. The random numbers depend on it, so changing it changes runs.
PLAN = 256
TRANSITIONS = ("linear", "cosine", "exponential")


class Mixture:
    """The data set of each step.

    Without `interleaving` it is drawn by `probs` (uniform if None; they need not sum to 1), which change to
    `probs_final` as r = step / max_steps goes from 0 to 1: linear p + r (p' - p), cosine p + (1 - cos πr)/2 (p' - p),
    exponential p (p'/p)^r, each normalised to sum 1. With `interleaving` the list is the order, each item repeated
    `probs` times if they are given (whole numbers), and shuffled in every cycle with `shuffle`.

    Raises: UsageError naming the key.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        seed: int,
        max_steps: int,
        probs: Sequence[float] | None = None,
        probs_final: Sequence[float] | None = None,
        transition: str = "linear",
        interleaving: bool = False,
        shuffle: bool = False,
    ) -> None:
        if not names:
            raise UsageError("dataset_list is empty: name the data sets to train on")
        for key, weights in (("dataset_sampling_probs", probs), ("dataset_sampling_probs_final", probs_final)):
            _check_weights(key, weights, len(names))
        if transition not in TRANSITIONS:
            raise UsageError(
                f"dataset_sampling_probs_transition_method={transition!r}: choose one of {', '.join(TRANSITIONS)}"
            )
        if interleaving and probs_final is not None:
            raise UsageError("dataset_sampling_probs_final has no meaning with dataset_interleaving: leave one out")
        self.names = list(dict.fromkeys(names))
        """The K different data sets, in the order of their first occurrence."""
        self.seed, self.max_steps, self.transition, self.shuffle = seed, max(1, max_steps), transition, shuffle
        self._item = np.array([self.names.index(name) for name in names])
        self._first = _share(probs, len(names))
        self._last = self._first if probs_final is None else _share(probs_final, len(names))
        if (
            transition == "exponential"
            and self._last is not self._first
            and min(self._first.min(), self._last.min()) == 0
        ):
            raise UsageError("dataset_sampling_probs_transition_method=exponential needs probabilities above 0")
        self._pattern = self._interleaved(probs) if interleaving else None
        self._planned: tuple[int, np.ndarray] | None = None
        self._counts = [np.zeros(len(self.names), dtype=np.int64)]  # [n]: batches of each data set before n * PLAN

    def _interleaved(self, counts: Sequence[float] | None) -> np.ndarray:
        repeats = np.ones(len(self._item)) if counts is None else np.asarray(counts, dtype=np.float64)
        if (repeats != np.round(repeats)).any():
            raise UsageError(
                f"dataset_sampling_probs={[float(c) for c in repeats]} with dataset_interleaving are counts: "
                "give whole numbers, such as 1 3 2"
            )
        return np.repeat(self._item, repeats.astype(np.int64))

    def probabilities(self, steps: int | np.ndarray) -> np.ndarray:
        """Probability of each data set at `steps` [...]; [..., K] (with interleaving: its share of a cycle)."""
        ratio = np.clip(np.asarray(steps, dtype=np.float64) / self.max_steps, 0, 1)[..., None]
        if self._pattern is not None:
            weights = np.broadcast_to(
                np.bincount(self._pattern, minlength=len(self.names)), (*ratio.shape[:-1], len(self.names))
            )
            return weights / len(self._pattern)
        if self.transition == "exponential" and self._last is not self._first:
            items = self._first * (self._last / self._first) ** ratio
        else:
            fraction = ratio if self.transition == "linear" else (1 - np.cos(np.pi * ratio)) / 2
            items = self._first + fraction * (self._last - self._first)
        weights = np.zeros((*ratio.shape[:-1], len(self.names)))
        for item, number in enumerate(self._item):
            weights[..., number] += items[..., item]
        return weights / weights.sum(axis=-1, keepdims=True)

    def choice(self, step: int) -> int:
        """The data set of step `step`, an index into `names`."""
        return int(self._plan(step // PLAN)[step % PLAN])

    def taken(self, step: int) -> np.ndarray:
        """Number of steps before `step` that trained on each data set; int64 [K]."""
        block = step // PLAN
        while len(self._counts) <= block:
            done = self._plan(len(self._counts) - 1)
            self._counts.append(self._counts[-1] + np.bincount(done, minlength=len(self.names)))
        part = self._plan(block)[: step % PLAN]
        return self._counts[block] + np.bincount(part, minlength=len(self.names))

    def _plan(self, block: int) -> np.ndarray:
        """The data sets of steps block * PLAN and following; [PLAN]."""
        if self._planned is None or self._planned[0] != block:
            steps = np.arange(block * PLAN, (block + 1) * PLAN)
            self._planned = (block, self._drawn(block, steps) if self._pattern is None else self._ordered(steps))
        return self._planned[1]

    def _drawn(self, block: int, steps: np.ndarray) -> np.ndarray:
        draws = keyed_numpy(self.seed, "text/mixture", block).random(PLAN)
        bounds = np.cumsum(self.probabilities(steps), axis=1)[:, :-1]
        return (draws[:, None] >= bounds).sum(axis=1)

    def _ordered(self, steps: np.ndarray) -> np.ndarray:
        assert self._pattern is not None
        length = len(self._pattern)
        if not self.shuffle:
            return self._pattern[steps % length]
        cycles = range(int(steps[0]) // length, int(steps[-1]) // length + 1)
        orders = [keyed_numpy(self.seed, "text/interleaving", cycle).permutation(self._pattern) for cycle in cycles]
        return np.concatenate(orders)[steps - cycles[0] * length]


def _check_weights(key: str, weights: Sequence[float] | None, count: int) -> None:
    if weights is None:
        return
    if len(weights) != count:
        raise UsageError(f"{key} has {len(weights)} values for {count} data sets: give one for each of dataset_list")
    if not all(np.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise UsageError(f"{key}={list(weights)}: expected numbers >= 0, not all 0")


def _share(weights: Sequence[float] | None, count: int) -> np.ndarray:
    values = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    return values / values.sum()
