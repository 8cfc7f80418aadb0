"""The samples of evaluations: of the base before training, of the model afterwards, drawn with the same random numbers.

Their metrics are in `tasks/animal/evaluation.py`; clusters are fitted once, to the samples of the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.distributed import broadcast_object, is_main
from models.animal.language_model import Sampling
from tasks.animal.evaluation import Evaluation
from tasks.animal.sampler import Sampler, mask_of
from tasks.animal.samples import Sample


class Measurement:
    """Evaluations of `rows` samples each, at temperature 1 over the whole vocabulary; `every` n steps, if not None."""

    def __init__(
        self, sampler: Sampler, figures: Evaluation, *, rows: int, seed: int, every: int | None = None
    ) -> None:
        self.sampler, self.figures, self.rows, self.seed, self.every = sampler, figures, rows, seed, every
        self.before: list[Sample] = []
        """Samples of the base."""
        self.newest: list[Sample] = []
        """Samples of the model at the last evaluation; before training, of the base."""
        self.step = -1
        """Step of the last evaluation."""
        self._results: dict[str, float | None] = {}
        self._fitted = False

    def due(self, step: int) -> bool:
        """Whether to evaluate after `step`: before training, and every n steps."""
        return step == 0 or (self.every is not None and step % self.every == 0)

    def take(self, step: int) -> dict[str, float | None]:
        """Sample and measure, once per step; all ranks return the same. Raises: Interrupted: the run was asked to
        stop."""
        if step == self.step:
            return self._results
        if not self.before:
            self.before = self._samples(base=True)
        self.newest = self.before if step == 0 else self._samples(base=False)

        def measure() -> dict[str, float | None]:
            if not self._fitted:
                self.figures.fit(self.before)
                self._fitted = True
            return self.figures.measure(self.newest)

        self._results = broadcast_object(measure() if is_main() else None)
        self.step = step
        return self._results

    def _samples(self, *, base: bool) -> list[Sample]:
        how: dict[str, Any] = {"base": base, "sampling": Sampling(), "stoppable": True}
        drawn = self.sampler.draw(self.seed, "animal/evaluation", 0, self.rows, **how)
        mask = mask_of(drawn)
        ref = self.sampler.scores(drawn.ids, mask, base=True, stoppable=True)
        logp = ref if base else self.sampler.scores(drawn.ids, mask, stoppable=True)
        return self.sampler.samples(drawn, logp, ref)

    def state_dict(self) -> dict[str, Any]:
        """The samples of the base, from which clusters are refitted."""
        return {"before": [sample.as_dict() for sample in self.before]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load `state_dict`."""
        self.before, self._fitted = [Sample(**sample) for sample in state["before"]], False
