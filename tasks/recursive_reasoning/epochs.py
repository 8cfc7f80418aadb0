"""Map an optimizer step to its position in the training data."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Sequence

from dataset.sampler import TrainSampler
from engine.task import UsageError


class EpochPlan:
    """The position of each step in the data: iterations of `epochs_per_iter` epochs, counted in actual batches.

    Raises UsageError for iterations of unequal length that are too many to plan one by one.
    """

    MOST = 100_000

    def __init__(self, sampler: TrainSampler, iterations: int) -> None:
        self.ends: Sequence[int]
        if sampler.equal_iterations:
            batches = sampler.batches_in(1)
            self.ends = range(batches, batches * iterations + 1, batches)
            return
        if iterations > self.MOST:
            raise UsageError(
                f"eval_interval={sampler.epochs_per_iter} cuts the run into {iterations} parts of unequal length, too "
                f"many to plan: choose eval_interval and epochs for at most {self.MOST} of them"
            )
        self.ends = list(itertools.accumulate(sampler.batches_in(i) for i in range(1, iterations + 1)))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.ends[-1]

    def locate(self, step: int) -> tuple[int, int]:
        """Step (1-based) -> (iteration, 1-based; batch index within it, 0-based)."""
        number = bisect.bisect_left(self.ends, step)
        before = self.ends[number - 1] if number else 0
        return number + 1, step - before - 1

    def evaluation_steps(self, skip: int) -> Collection[int]:
        """The last steps of all iterations but the first `skip`."""
        steps = self.ends[skip:]
        return steps if isinstance(steps, range) else frozenset(steps)
