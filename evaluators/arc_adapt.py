"""ARC with test-time training on each task's demonstrations, for models with a demonstration encoder.

Scores are of protocol class (ii). The model itself is not changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from dataset.format import PuzzleSplit
from engine.distributed import all_reduce_sum
from evaluators.adaptation.ballots import Ballots, BallotsConfig
from evaluators.adaptation.examples import Batch, Originals, select_rows
from evaluators.adaptation.training import Examples, TrainingConfig, fit_tokens, fit_weights
from evaluators.steps import StepOutput


@dataclass(kw_only=True)
class ARCTestTimeTrainingConfig(BallotsConfig, TrainingConfig):
    """Settings of `arc_adapt@ARCTestTimeTraining`."""

    def __post_init__(self) -> None:
        BallotsConfig.__post_init__(self)
        TrainingConfig.__post_init__(self)


class ARCTestTimeTraining(Ballots):
    """Scores after test-time training, e.g. `ARC_ii_clean/adapt_token_20/pass@1`.

    `adapt/loss_first`, `loss_last` are means over trained tasks, `adapt/tasks_without_training` counts those with a
    single demonstration, `adapt/seconds_per_task` is wall time of this rank. A task whose rows are in several batches
    is trained once per batch, with the same result.
    """

    Config: ClassVar[type] = ARCTestTimeTrainingConfig

    def labels(self) -> dict[str, str]:
        return {f"adapt_{self.config.adapt}_{self.config.steps}": "ii" if self.config.steps else "i"}

    def begin(self, splits: Sequence[PuzzleSplit]) -> None:
        super().begin(splits)
        self.originals = Originals(splits)
        self.sums = torch.zeros(5, dtype=torch.float64)  # first loss, last loss, trained, not trained, seconds

    def update(self, batch: Mapping[str, Tensor], steps: Sequence[StepOutput], preds: Tensor, valid_rows: int) -> None:
        """Train on the tasks of the selected rows, answer and vote; a collective."""
        started, rows = time.perf_counter(), self.select(batch, valid_rows)
        own = select_rows(batch, rows)
        answers, q_halt = preds[rows].clone(), steps[-1].q_halt_logits[rows].clone()
        groups = own["group_ids"].cpu().numpy()
        if len(rows) and self.config.adapt == "token":
            answers, q_halt = self._by_token(own, groups)
        elif len(rows):
            tasks = np.unique(groups)
            for begin in range(0, len(tasks), self.config.tasks):
                for mine, output in self._by_weights(own, groups, tasks[begin : begin + self.config.tasks]):
                    answers[mine], q_halt[mine] = output.logits.argmax(-1), output.q_halt_logits
        (label,) = self.labels()
        self.vote(label, batch, rows, answers, q_halt)
        self.sums[4] += time.perf_counter() - started

    def _by_token(self, own: Batch, groups: np.ndarray) -> tuple[Tensor, Tensor]:
        tasks, place = np.unique(groups, return_inverse=True)
        examples = Examples(self.originals, tasks, self.config, self.config.seed)
        device = own["inputs"].device
        token, history = fit_tokens(self.model, examples, self.config, self.token_loss, device)
        self._record(history, examples)
        with torch.no_grad():
            context = self.model.encode(own).context
            context = context.to(token.dtype) + token[torch.from_numpy(place).to(device)]
            output = self.model.decode_with_context(own, context, act_steps=self.model.halt_max_steps)
        return output.logits.argmax(-1), output.q_halt_logits

    def _by_weights(self, own: Batch, groups: np.ndarray, tasks: np.ndarray) -> Iterator[tuple[Tensor, Any]]:
        """Yield, for each task, its rows and the output of the trained model for them."""
        examples = Examples(self.originals, tasks, self.config, self.config.seed)
        device = own["inputs"].device
        weights, history = fit_weights(self.model, examples, self.config, self.token_loss, device)
        self._record([] if not len(history) else [float(end) for end in history[[0, -1]].nanmean(1)], examples)
        for place, task in enumerate(tasks):
            mine = torch.from_numpy(np.flatnonzero(groups == task)).to(device)
            with torch.no_grad():
                own_weights = {name: value[place] for name, value in weights.items()}
                yield mine, functional_call(self.model, own_weights, (select_rows(own, mine),))

    def _record(self, history: list[float], examples: Examples) -> None:
        trained = int((examples.sizes > 1).sum()) if history else 0
        ends = (history[0], history[-1]) if trained else (0.0, 0.0)
        row = [*(value * trained for value in ends), trained, len(examples.groups) - trained]
        self.sums[:4] += torch.tensor(row, dtype=torch.float64)

    def result(self) -> dict[str, float | None]:
        """Scores, losses and time of the training."""
        first, last, trained, idle, seconds = all_reduce_sum(self.sums.clone()).tolist()
        values = super().result()
        return values | {
            "adapt/loss_first": first / trained if trained else None,
            "adapt/loss_last": last / trained if trained else None,
            "adapt/tasks_without_training": idle,
            "adapt/seconds_per_task": seconds / (trained + idle) if trained + idle else None,
        }
