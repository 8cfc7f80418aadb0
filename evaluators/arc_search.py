"""ARC with latent search at test time, for models with a demonstration encoder (LPN, arXiv 2411.08706).

Every augmented copy of a task is searched separately, with its own demonstrations; then all copies vote. Answers of the
second-best latents rank after all answers with votes, so they matter as second attempt where the copies agree. Scores
are of protocol class (ii); those of budget 0 (the encoder's own latent) are of class (i).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dataset.format import PuzzleSplit
from engine.distributed import all_reduce_sum
from evaluators.adaptation.ballots import Ballots, BallotsConfig
from evaluators.adaptation.examples import Batch, select_rows
from evaluators.adaptation.search import Objective, SearchConfig, Space, answer, row_sums, search, split_rows
from evaluators.steps import StepOutput

MEASURED = ("demo_logp_init", "demo_logp_best", "demo_exact_init", "demo_exact_best", "steps_to_best", "latent_move")


@dataclass(kw_only=True)
class ARCLatentSearchConfig(BallotsConfig, SearchConfig):
    """Settings of `arc_search@ARCLatentSearch`."""

    def __post_init__(self) -> None:
        BallotsConfig.__post_init__(self)
        SearchConfig.__post_init__(self)


class ARCLatentSearch(Ballots):
    """Scores after each search budget, e.g. `ARC_ii_clean/search_20/pass@1`; of random search `.../random_20/...`.

    `search/demo_logp_init`, `_best` (mean log p per cell, summed over demonstrations; with `demo_augs` averaged over a
    demonstration and its copies), `demo_exact_init`, `_best` (share of demonstrations answered correctly),
    `steps_to_best`, `latent_move` (distance from the start) are means over rows at the largest budget;
    `search/seconds_per_question` is wall time of this rank. Of random search: `random/...`.
    """

    Config: ClassVar[type] = ARCLatentSearchConfig

    def labels(self) -> dict[str, str]:
        return {f"{self.way}_{budget}": "ii" if budget else "i" for budget in self.budgets}

    @property
    def way(self) -> str:
        """Prefix of the metric names, so that both kinds of search can be in one evaluation."""
        return "random" if self.config.mode == "random_search" else "search"

    def begin(self, splits: Sequence[PuzzleSplit]) -> None:
        super().begin(splits)
        self.sums = torch.zeros(len(MEASURED) + 1, dtype=torch.float64)
        self.seconds = 0.0

    def update(self, batch: Mapping[str, Tensor], steps: Sequence[StepOutput], preds: Tensor, valid_rows: int) -> None:
        """Search for the selected rows, answer and vote; a collective."""
        started, rows = time.perf_counter(), self.select(batch, valid_rows)
        space = Space(self.model, self.config.space)
        pieces = [self._answers(space, piece) for piece in split_rows(select_rows(batch, rows), self.config.microbatch)]
        nothing = preds[:0], preds[:0, 0].float()
        for place, (label, budget) in enumerate(zip(self.labels(), self.budgets, strict=True)):
            for second in (False, True) if budget else (False,):
                parts = [answers[place][second] for answers in pieces] or [nothing]
                tokens, q_halt = (torch.cat(each) for each in zip(*parts, strict=True))
                self.vote(label, batch, rows, tokens, q_halt, second=second)
        self.seconds += time.perf_counter() - started

    @property
    def budgets(self) -> list[int]:
        """The budgets, ascending and without duplicates."""
        return sorted(set(self.config.budgets))

    def _answers(self, space: Space, own: Batch) -> list[list[tuple[Tensor, Tensor]]]:
        """For every budget, (answers, q_halt) of the best latents and, if there is one, of the second best. Also adds
        to the sums."""
        config = self.config
        result = search(space, own, self.token_loss, config, config.seed)
        objective, most = Objective(space, own, self.token_loss, config, config.seed), max(config.budgets)
        end = result.latents[most]
        with torch.no_grad():
            start = space.start(own)
            solved = objective.solved(start), objective.solved(end)
        move = (end - start).flatten(1).norm(dim=1)
        self.sums += row_sums([result.first, result.scores[most], *solved, result.steps, move])
        latents = [
            [result.latents[budget], *([result.runners_up[budget]] if budget else [])] for budget in self.budgets
        ]
        return [[answer(space, own, z) for z in each] for each in latents]

    def result(self) -> dict[str, float | None]:
        """Scores of every budget, and the means `search/...`."""
        *sums, rows, seconds = all_reduce_sum(torch.cat((self.sums, torch.tensor([self.seconds])))).tolist()
        values = super().result()
        means = dict(zip(MEASURED, sums, strict=True)) | {"seconds_per_question": seconds}
        return values | {f"{self.way}/{name}": total / rows if rows else None for name, total in means.items()}
