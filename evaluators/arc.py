"""ARC: every augmented copy of a test grid votes for an answer, and the leading answers are scored.

The rules are those of the public evaluator of TRM (arXiv 2510.04871); they are in `evaluators/voting/`. Votes are
for one evaluation unless `pooled` is set. Every rank decodes its rows and all ranks exchange them batch by batch, so
that the votes come in the order of the file: the result is the same for any number of ranks, to the last bit, and only
rank 0 keeps votes.

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
from evaluators.voting.grids import restored
from evaluators.voting.scores import metrics_of, outcomes_of, record_of, submission_of
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
    """Scores by votes over augmentations, for data sets of `python -m dataset.build_arc_dataset`.

    All metrics are named `ARC_CLASS_LEAKAGE/...`: the protocol class (i, ii, iii) and whether the leakage report of the
    data is empty (clean, leak, unchecked), so that no score is without them and scores of different protocols are not
    taken for the same metric. `pass@K`, `all_pairs@K`: see `metrics_of`. None where no task was asked.
    `tasks` is how many a score is of, `tasks_total` how many with known solutions there are.
    """

    Config: ClassVar[type] = ARCConfig
    needs_steps = False
    test_only = True
    """What is asked, and the answers, are read from test_puzzles.json."""

    def __init__(self, config: ARCConfig) -> None:
        self.config = config
        self.tasks: Tasks | None = None
        self._asked: tuple[Any, ...] = ()
        self.evaluations = 0
        """Whose votes are counted together."""
        self.label = ""
        self.protocol: Protocol | None = None
        """Overrides the protocol of the data sets, where the caller knows more (scripts/predict.py)."""

    def begin(
        self, splits: Sequence[PuzzleSplit], *, like: ARC | None = None, label: str = "", fitted: bool = False
    ) -> None:
        """Get ready for the examples of these splits, and forget the votes for others.

        Args:
            like: another that has begun with these splits, whose tasks are taken over.
            label: of a way of answering; part of the metrics' names.
            fitted: whether the model is fitted to each task, which is class ii.

        Raises: UsageError.
        """
        asked = tuple((str(s.root), s.split, s.set_name, s.identifier_offset) for s in splits)
        if asked != self._asked or self.tasks is None:
            self.tasks = Tasks(splits) if like is None else like.tasks
            self._asked, self.evaluations = asked, 0
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
        """Every task with its leading answers, of the last result (on rank 0)."""
        self.files: dict[str, str] = {}
        """The same and the submission: file name -> text."""

    def update(
        self,
        batch: Mapping[str, Tensor],
        steps: Sequence[StepOutput],
        preds: Tensor,
        valid_rows: int,
        *,
        second: bool = False,
    ) -> None:
        """Take the answers of the first `valid_rows` rows as votes; a collective, with equal B on all ranks.

        Args:
            batch: inputs [B, T], puzzle_identifiers [B].
            steps: the last one's q_halt_logits [B] are the confidences.
            preds: [at least valid_rows, T]
            second: second choices in place of votes.
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
            votes[known, 0] = self.tasks.find(identifiers[known], restored(inputs[known], *augmentation)[1])
            codes[known], keys = restored(answers[known], *augmentation)
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
        """The metrics, the same on all ranks; on rank 0 they are printed in words, and `files` is filled."""
        unmatched = float(all_reduce_sum(self.unmatched.clone()))
        return on_main(lambda: self._result(unmatched))

    def _result(self, unmatched: float) -> dict[str, float | None]:
        assert self.tasks is not None
        attempts, protocol = self.config.submission_K, self.protocol or self.tasks.protocol
        table = outcomes_of(self.tasks, self.votes.answers())
        metrics = metrics_of(table, self.config.pass_Ks, attempts, self.config.confidence)
        unknown = {question.task for question in self.tasks.questions if question.solution is None}
        metrics["tasks_total"] = float(len(self.tasks.names) - len(unknown))
        metrics["unmatched_examples"] = unmatched
        metrics["pooled_evaluations"] = float(self.evaluations)
        print_rank0(self._in_words(metrics))
        print_rank0(f"ARC         {protocol.words}")
        place = f"ARC_{protocol.mark}/{self.label}/" if self.label else f"ARC_{protocol.mark}/"
        named = {place + name: value for name, value in metrics.items()}
        head = {"protocol": protocol.name, "leakage": protocol.leakage, "meaning": protocol.words, "scores": named}
        record = {**head, "attempts": attempts, "tasks": record_of(self.tasks, table, attempts)}
        self.files = {
            "arc_submission.json": json.dumps(submission_of(table, attempts)),
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
