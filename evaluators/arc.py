"""ARC: every augmented copy of a test grid votes for an answer, and the top answers are scored.

The rules are those of TRM's public evaluator (arXiv 2510.04871); see `evaluators/voting/`. Votes count within one
evaluation unless `pooled` is set. Every rank decodes its rows, and the ranks gather them batch by batch, so votes are
in the order of the file: the result is bit-identical for any number of ranks. Only rank 0 keeps votes.

B rows of a batch, T = C * C tokens of a canvas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dataset.format import PuzzleSplit
from engine.distributed import all_gather_rows, all_reduce_sum, is_main, on_main
from engine.fields import Range, check_fields
from engine.io import print_rank0
from evaluators.steps import StepOutput
from evaluators.voting.grids import undo_augmentation
from evaluators.voting.scores import build_record, build_submission, compute_metrics, compute_outcomes
from evaluators.voting.tasks import Protocol, Tasks
from evaluators.voting.votes import Votes


@dataclass(kw_only=True)
class ARCConfig:
    """Settings of `arc@ARC`."""

    submission_K: Annotated[int, Range(1)] = 2
    """Attempts for each test grid, in the submission and in the score that has an interval."""
    pass_Ks: Annotated[list[int], Range(1)] = field(default_factory=lambda: [1, 2, 5, 10, 100, 1000])
    """Values of K for the scores: how many leading answers count."""
    pooled: bool = False
    """Votes of earlier evaluations of this process count too, as in the public code: late scores look better."""
    confidence: Annotated[float, Range(above=0, below=1, hint="e.g. 0.95")] = 0.95
    """Confidence level of the Wilson intervals."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.pass_Ks:
            raise ValueError("pass_Ks is empty: expected numbers from 1, e.g. [1, 2]")


class ARC:
    """Scores by voting over augmentations, for data sets of `python -m dataset.build_arc_dataset`.

    All metrics are named `ARC_CLASS_LEAKAGE/...`, with the protocol class (i, ii, iii) and the result of the data's
    leakage report (clean, leak, unchecked), so that scores of different protocols are never confused. `pass@K`,
    `all_pairs@K`: see `compute_metrics`; None if no task was evaluated. `tasks` is the number of scored tasks,
    `tasks_total` the number of tasks with known solutions.
    """

    Config: ClassVar[type] = ARCConfig
    needs_steps = False
    test_only = True
    """Questions and solutions are read from test_puzzles.json."""

    def __init__(self, config: ARCConfig) -> None:
        self.config = config
        self.tasks: Tasks | None = None
        self._source: tuple[Any, ...] = ()
        self.evaluations = 0
        """Number of evaluations whose votes are counted together."""
        self.label = ""
        self.protocol: Protocol | None = None
        """Overrides the protocol of the data sets, if the caller knows more (scripts/predict.py)."""

    def begin(
        self, splits: Sequence[PuzzleSplit], *, like: ARC | None = None, label: str = "", fitted: bool = False
    ) -> None:
        """Prepare for these splits and reset the votes (unless pooled, for the same splits).

        Args:
            like: another instance that has begun with these splits, whose tasks are reused.
            label: name of the way of answering; part of the metric names.
            fitted: whether the model is fitted to each task, which is class ii.

        Raises: UsageError.
        """
        source = tuple((str(s.root), s.split, s.set_name, s.identifier_offset) for s in splits)
        if source != self._source or self.tasks is None:
            self.tasks = Tasks(splits) if like is None else like.tasks
            self._source, self.evaluations = source, 0
        self.label = label
        assert self.tasks is not None
        if fitted and self.tasks.protocol.name == "i":
            self.protocol = Protocol("ii", self.tasks.protocol.leakage)
        if not self.config.pooled or not self.evaluations:
            self.votes = Votes(self.tasks.side**2, keep=max(self.config.submission_K, 2))
            self.evaluations = 0
        self.evaluations += 1
        self.unmatched = torch.zeros((), dtype=torch.float64)
        self.record: dict[str, Any] = {}
        """All tasks with their top answers, from the last result (on rank 0)."""
        self.files: dict[str, str] = {}
        """The record and the submission: file name -> text."""

    def update(
        self,
        batch: Mapping[str, Tensor],
        steps: Sequence[StepOutput],
        preds: Tensor,
        valid_rows: int,
        *,
        second: bool = False,
    ) -> None:
        """Count the answers of the first `valid_rows` rows as votes; a collective, with equal B on all ranks.

        Args:
            batch: inputs [B, T], puzzle_identifiers [B].
            steps: q_halt_logits [B] of the last step are the confidences.
            preds: [at least valid_rows, T]
            second: record second choices instead of votes.
        """
        assert self.tasks is not None
        rows = len(batch["inputs"])
        identifiers = batch["puzzle_identifiers"][:valid_rows].cpu().numpy()
        confidence = torch.sigmoid(steps[-1].q_halt_logits[:valid_rows].cpu().double()).numpy()
        inputs, answers = (part[:valid_rows].cpu().numpy() for part in (batch["inputs"], preds))
        votes = np.full((rows, 4), -1, dtype=np.int64)  # question, key, key, confidence; -1 is not a vote
        codes = np.zeros((rows, self.tasks.side**2), dtype=np.uint8)
        known = np.flatnonzero(self.tasks.known(identifiers))
        if len(known):
            augmentation = self.tasks.augmentation(identifiers[known])
            votes[known, 0] = self.tasks.find(identifiers[known], undo_augmentation(inputs[known], *augmentation)[1])
            codes[known], keys = undo_augmentation(answers[known], *augmentation)
            votes[known, 1:3] = keys.view(np.int64)
            votes[known, 3] = confidence[known].view(np.int64)
        if not second:
            self.unmatched += valid_rows - int((votes[:, 0] >= 0).sum())
        every = all_gather_rows(torch.from_numpy(votes)).numpy()
        grids = all_gather_rows(torch.from_numpy(codes)).numpy()
        if is_main():
            cast = every[:, 0] >= 0
            every = every[cast]
            keys, confidence = every[:, 1:3].view(np.uint64), every[:, 3].view(np.float64)
            self.votes.add(every[:, 0], keys, confidence, grids[cast], second=second)

    def result(self) -> dict[str, float | None]:
        """The metrics, the same on all ranks; rank 0 also prints a summary and fills `files`."""
        unmatched = float(all_reduce_sum(self.unmatched.clone()))
        return on_main(lambda: self._result(unmatched))

    def _result(self, unmatched: float) -> dict[str, float | None]:
        assert self.tasks is not None
        attempts, protocol = self.config.submission_K, self.protocol or self.tasks.protocol
        table = compute_outcomes(self.tasks, self.votes.answers())
        metrics = compute_metrics(table, self.config.pass_Ks, attempts, self.config.confidence)
        unknown = {question.task for question in self.tasks.questions if question.solution is None}
        metrics["tasks_total"] = float(len(self.tasks.names) - len(unknown))
        metrics["unmatched_examples"] = unmatched
        metrics["pooled_evaluations"] = float(self.evaluations)
        print_rank0(self._in_words(metrics))
        print_rank0(f"ARC         {protocol.words}")
        prefix = f"ARC_{protocol.mark}/{self.label}/" if self.label else f"ARC_{protocol.mark}/"
        named = {prefix + name: value for name, value in metrics.items()}
        head = {"protocol": protocol.name, "leakage": protocol.leakage, "meaning": protocol.words, "scores": named}
        record = {**head, "attempts": attempts, "tasks": build_record(self.tasks, table, attempts)}
        self.files = {
            "arc_submission.json": json.dumps(build_submission(table, attempts)),
            "arc_tasks.json": json.dumps(record),
        }
        self.record = record
        return named

    def _in_words(self, metrics: Mapping[str, float | None]) -> str:
        k = self.config.submission_K
        tasks, votes = int(metrics["tasks"] or 0), int(metrics["votes"] or 0)
        if not tasks:
            return f"ARC         no score: {votes:,} votes for tasks with known solutions, none complete"
        parts = []
        for name in ("pass", "all_pairs"):
            first = "" if k == 1 or f"{name}@1" not in metrics else f"{name}@1 {_percent(metrics[f'{name}@1'])}, "
            low, high = (_percent(metrics[f"{name}@{k}_{end}"]) for end in ("low", "high"))
            parts.append(f"{first}{name}@{k} {_percent(metrics[f'{name}@{k}'])} ({low} .. {high})")
        pooled = f", POOLED over {self.evaluations} evaluations" if self.evaluations > 1 else ""
        title = f"ARC         {self.label + ': ' if self.label else ''}"
        total = int(metrics["tasks_total"] or 0)
        counted = f"{tasks:,} of {total:,} tasks" if tasks < total else f"{tasks:,} task{'s' * (tasks != 1)}"
        return f"{title}{'; '.join(parts)}; {counted}, {votes:,} votes{pooled}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
