"""ARC with altered demonstrations, as a control: does the model use them at all?

    own        the task's own
    blanked    none
    shuffled   the task's inputs, each with an output of some other task
    foreign    those of one other task

A model that ignores the demonstrations scores the same in all four; one that infers the rule from them falls to chance
in the last three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dataset.arc.tokens import PAD
from dataset.format import PuzzleSplit
from engine.distributed import keyed_numpy
from engine.errors import UsageError
from evaluators.adaptation.ballots import Ballots, BallotsConfig
from evaluators.adaptation.examples import Batch, Originals, select_rows
from evaluators.steps import StepOutput

OWN, BLANKED, SHUFFLED, FOREIGN = LABELS = ("own", "blanked", "shuffled", "foreign")


@dataclass(kw_only=True)
class ARCControlsConfig(BallotsConfig):
    """Settings of `arc_controls@ARCControls`."""


class ARCControls(Ballots):
    """Scores with each kind of demonstrations, e.g. `ARC_i_clean/blanked/pass@1`. Other tasks are drawn from the
    evaluation, by task and seed."""

    Config: ClassVar[type] = ARCControlsConfig

    def labels(self) -> dict[str, str]:
        return dict.fromkeys(LABELS, "i")

    def begin(self, splits: Sequence[PuzzleSplit]) -> None:
        super().begin(splits)
        self.originals = Originals(splits)
        if len(self.originals) < 2:
            raise UsageError(
                "evaluators: ARCControls needs at least two tasks, to show one the demonstrations of another"
            )

    def update(self, batch: Mapping[str, Tensor], steps: Sequence[StepOutput], preds: Tensor, valid_rows: int) -> None:
        """Answer with every kind of demonstrations and vote; a collective."""
        rows = self.select(batch, valid_rows)
        self.vote(OWN, batch, rows, preds[rows], steps[-1].q_halt_logits[rows])
        own = select_rows(batch, rows)
        for label in LABELS[1:]:
            if not len(rows):
                self.vote(label, batch, rows, preds[:0], steps[-1].q_halt_logits[:0])
                continue
            with torch.no_grad():
                output = self.model(self.alter(own, label))
            self.vote(label, batch, rows, output.logits.argmax(-1), output.q_halt_logits)

    def alter(self, batch: Batch, label: str) -> Batch:
        """The batch with altered demonstrations."""
        if label == BLANKED:
            blank = {name: torch.full_like(batch[name], PAD) for name in ("demo_inputs", "demo_labels")}
            return {**batch, **blank, "demo_mask": torch.zeros_like(batch["demo_mask"])}
        groups, width = batch["group_ids"].cpu().numpy(), batch["demo_mask"].shape[1]
        others = np.stack([self._others(int(group), width) for group in groups])  # [B, K]
        if label == FOREIGN:
            shown = self.originals.demonstrations(others[:, 0])
            return {**batch, **{name: torch.from_numpy(value).to(batch[name]) for name, value in shown.items()}}
        labels = batch["demo_labels"].clone()
        for place in range(width):
            shown = self.originals.demonstrations(others[:, place])
            taken = place % shown["demo_mask"].sum(1)  # each task has at least one
            outputs = shown["demo_labels"][np.arange(len(groups)), taken]
            labels[:, place] = torch.from_numpy(outputs).to(labels)
        labels[~batch["demo_mask"]] = PAD
        return {**batch, "demo_labels": labels}

    def _others(self, group: int, count: int) -> np.ndarray:
        """Draw `count` other groups, [count]; without replacement if there are enough."""
        generator, all_others = keyed_numpy(self.config.seed, "other_tasks", group), len(self.originals) - 1
        drawn = generator.permutation(all_others)[:count]
        drawn = np.resize(drawn, count)
        return drawn + (drawn >= group)
