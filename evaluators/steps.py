"""Accuracy after each ACT step: how much do more steps help?

B rows of a batch, T sequence length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import torch
from torch import Tensor

from engine.distributed import all_reduce_sum
from engine.fields import Range, check_fields
from evaluators.intervals import wilson

IGNORE = -100
"""Label of a position that is not scored."""
COLUMNS = ("accuracy", "exact_accuracy", "q_halt_accuracy", "would_halt")


class StepOutput(Protocol):
    """Interface of a model's output after one ACT step."""

    @property
    def logits(self) -> Tensor | None:
        """[B, T, V], or None."""

    @property
    def q_halt_logits(self) -> Tensor:
        """[B]"""


@dataclass(kw_only=True)
class PerStepAccuracyConfig:
    """Settings of `steps@PerStepAccuracy`."""

    confidence: Annotated[float, Range(above=0, below=1, hint="e.g. 0.95")] = 0.95
    """Confidence level of the Wilson interval of the exact accuracy."""
    per_step: bool = True
    """Report every ACT step; false: only the interval of the last step, without the output heads of the others."""

    def __post_init__(self) -> None:
        check_fields(self)


class PerStepAccuracy:
    """Exact and token accuracy after each ACT step, with the interval of the last exact accuracy.

    Metrics, with steps counted from 1: `exact_accuracy/step_01`, `accuracy/step_01` (share of correct positions,
    averaged over examples), `q_halt_accuracy/step_01` (of the halting head's prediction whether the answer is right),
    `would_halt/step_01` (share of examples that the halting head would stop), then `exact_accuracy_low`,
    `exact_accuracy_high` and `examples`. Examples without scored positions do not count. Memory does not depend on the
    size of the split.
    """

    Config: ClassVar[type] = PerStepAccuracyConfig

    def __init__(self, config: PerStepAccuracyConfig) -> None:
        self.config = config
        self.needs_steps = config.per_step
        self.begin()

    def begin(self, splits: Sequence[Any] = ()) -> None:
        """Reset the counts; `splits` is not used."""
        self.examples = torch.zeros((), dtype=torch.float64)
        self.sums: Tensor | None = None  # [steps, columns] float64 on the CPU: mps has no float64

    def update(self, batch: Mapping[str, Tensor], steps: Sequence[StepOutput], preds: Tensor, valid_rows: int) -> None:
        """Count the first `valid_rows` rows of a batch; the rest is padding.

        Args:
            batch: labels [B, T], -100 where a position is not scored.
            steps: the output after each step; the last may lack logits, since its answer is `preds`.
            preds: the final answer [at least valid_rows, T].
        """
        labels = batch["labels"][:valid_rows]
        table = []
        for number, step in enumerate(steps, start=1):
            if number == len(steps):
                answer = preds[:valid_rows]
            elif step.logits is None:
                raise ValueError(f"ACT step {number} of {len(steps)} came without logits")
            else:
                answer = step.logits[:valid_rows].argmax(dim=-1)
            table.append(_count(answer, labels, step.q_halt_logits[:valid_rows]))
        counted = torch.stack(table).cpu().double()  # one transfer per batch
        self.sums = counted if self.sums is None else self.sums + counted
        self.examples += (labels != IGNORE).any(dim=1).sum().cpu()

    def result(self) -> dict[str, float | None]:
        """The metrics over all ranks, the same on each; None if there were no examples."""
        examples = float(all_reduce_sum(self.examples.clone()))
        if self.sums is None or examples == 0:
            return {"examples": examples, "exact_accuracy_low": None, "exact_accuracy_high": None}
        sums = all_reduce_sum(self.sums.clone())
        values: dict[str, float | None] = {"examples": examples}
        if self.config.per_step:
            for column, name in enumerate(COLUMNS):
                for number, total in enumerate(sums[:, column].tolist(), start=1):
                    values[f"{name}/step_{number:02d}"] = total / examples
        solved = float(sums[-1, COLUMNS.index("exact_accuracy")])
        values["exact_accuracy_low"], values["exact_accuracy_high"] = wilson(solved, examples, self.config.confidence)
        return values


def _count(answer: Tensor, labels: Tensor, q_halt: Tensor) -> Tensor:
    """Sums of COLUMNS over rows with scored positions: answer, labels [n, T], q_halt [n] -> [columns]."""
    scored = labels != IGNORE
    positions = scored.sum(dim=1)
    right = ((answer == labels) & scored).sum(dim=1)
    real = positions > 0
    exact = real & (right == positions)
    share = right / positions.clamp(min=1)
    columns: list[Any] = [share, exact, real & ((q_halt >= 0) == exact) & ~q_halt.isnan(), real & (q_halt > 0)]
    return torch.stack([column.sum().to(torch.float32) for column in columns])
