"""Base of evaluators that answer the same questions in several ways, each with its own votes and scores."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from dataset.format import PuzzleSplit
from engine.errors import UsageError
from engine.fields import Range, check_fields
from evaluators.adaptation.examples import Batch, TokenLoss, select_rows
from evaluators.arc import ARC, ARCConfig


@dataclass(kw_only=True)
class BallotsConfig:
    """Settings shared by evaluators that answer in several ways."""

    submission_K: Annotated[int, Range(1)] = 2
    """Attempts per test grid in the score with an interval (that of the first attempt has one too)."""
    pass_Ks: Annotated[list[int], Range(1)] = field(default_factory=lambda: [1, 2])
    """Values of K for the scores: how many leading answers count."""
    confidence: Annotated[float, Range(above=0, below=1, hint="e.g. 0.95")] = 0.95
    """Confidence level of the Wilson intervals."""
    max_augmentations: Annotated[int | None, Range(1)] = None
    """Evaluate only this many first augmented copies of each task; null: all that the evaluation has."""
    seed: int = 0
    """Seed of all random numbers, which depend on the task, not on the batch."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.pass_Ks:
            raise ValueError("pass_Ks is empty: expected numbers from 1, e.g. [1, 2]")


class Ballots(ABC):
    """Base class of evaluators that answer in several ways (`labels`); within each, augmented copies vote.

    Metrics are `ARC_CLASS_LEAKAGE/LABEL/...`, with the protocol class of each way. Call `attach` before `begin`.
    """

    needs_steps = False
    test_only = True

    def __init__(self, config: Any) -> None:
        self.config = config
        self.model: Any = None
        self.votes: dict[str, ARC] = {}

    def attach(self, model: Any, loss_head: Any) -> None:
        """Set the model to evaluate, and the token loss it was trained with. Raises: UsageError for a model without a
        demonstration encoder."""
        if not hasattr(model, "decode_with_context"):
            raise UsageError(
                f"evaluators: {type(self).__name__} needs a model that is shown demonstrations, which "
                f"{type(model).__name__} is not"
            )
        self.model = model
        self.token_loss: TokenLoss = loss_head.token_loss

    @abstractmethod
    def labels(self) -> dict[str, str]:
        """Way of answering -> protocol class: i, or ii if the model is fitted to the task."""

    def begin(self, splits: Sequence[PuzzleSplit]) -> None:
        """Reset the votes and prepare for these splits. Raises: UsageError."""
        if self.model is None:
            raise UsageError(f"evaluators: {type(self).__name__} is for pretrain_etrm.py: it needs the model")
        config = self.config
        first: ARC | None = None
        for label, protocol_class in self.labels().items():
            own = ARCConfig(submission_K=config.submission_K, pass_Ks=[*config.pass_Ks], confidence=config.confidence)
            vote = self.votes.setdefault(label, ARC(own))
            vote.begin(splits, like=first, label=label, fitted=protocol_class == "ii")
            first = first or vote
        self._first_copies = _first_copies(splits, config.max_augmentations or 1)

    def select(self, batch: Mapping[str, Tensor], valid_rows: int) -> Tensor:
        """The rows to evaluate, [n] ascending: not padding, and among the first `max_augmentations` copies of a
        task."""
        rows = torch.arange(valid_rows, device=batch["inputs"].device)
        if self.config.max_augmentations is None or not valid_rows:
            return rows
        selected = torch.isin(batch["puzzle_identifiers"][:valid_rows].cpu().long(), self._first_copies)
        return rows[selected.to(rows.device)]

    def vote(
        self,
        label: str,
        batch: Mapping[str, Tensor],
        rows: Tensor,
        preds: Tensor,
        q_halt: Tensor,
        *,
        second: bool = False,
    ) -> None:
        """Count answers preds [n, T] with q_halt [n] for `rows` [n] as votes, or as second choices; a collective."""
        count = len(batch["inputs"])
        rest = torch.ones(count, dtype=torch.bool, device=rows.device)
        rest[rows] = False
        questions = {name: batch[name] for name in ("inputs", "puzzle_identifiers")}
        ordered: Batch = select_rows(questions, torch.cat((rows, rest.nonzero()[:, 0])))
        self.votes[label].update(ordered, [_Answer(q_halt)], preds, len(rows), second=second)

    def result(self) -> dict[str, float | None]:
        """The metrics of all ways, the same on all ranks."""
        values: dict[str, float | None] = {}
        self.files: dict[str, str] = {}
        for label, vote in self.votes.items():
            values |= vote.result()
            if vote.record:
                self.files[f"{self.name}_{label}.json"] = json.dumps(vote.record)
        return values

    @property
    def name(self) -> str:
        """Prefix of the files it writes: the name of its module."""
        return type(self).__module__.rpartition(".")[2]


def _first_copies(splits: Sequence[PuzzleSplit], count: int) -> Tensor:
    """The identifiers of the first `count` puzzles of each group, [n] int64."""
    identifiers = [torch.empty(0, dtype=torch.int64)]
    for split in splits:
        number = np.arange(split.num_puzzles)
        group = np.searchsorted(split.group_indices, number, side="right") - 1
        first = split.puzzle_identifiers[number - split.group_indices[group] < count]
        identifiers.append(torch.from_numpy(first.astype(np.int64) + split.identifier_offset))
    return torch.cat(identifiers)


@dataclass(frozen=True)
class _Answer:
    q_halt_logits: Tensor
    logits: None = None
