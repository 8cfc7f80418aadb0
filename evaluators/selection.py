"""Which of several rollouts of a puzzle to answer with, from the rollouts alone: no label comes near this module.

R rollouts, D ACT steps, N puzzles, T positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LAST = 3
"""Steps that the residual is a mean of."""


@dataclass(frozen=True)
class Rolled:
    """What the rollouts said."""

    answers: Tensor
    """[R, D, N, T]"""
    q: Tensor
    """Logit of the halting head, [R, D, N]: how sure the model is of its answer."""
    moved: Tensor
    """Mean over positions of the length of logits_t - logits_{t-1}, [R, D, N]; infinite at the first step."""

    def cut(self, rollouts: int, steps: int) -> Rolled:
        """The first rollouts, the first steps."""
        return Rolled(*(part[:rollouts, :steps] for part in (self.answers, self.q, self.moved)))


Chosen = tuple[Tensor, Tensor]
"""(answers [N, T], steps that were needed [N])."""


def _at(rolled: Rolled, rollout: Tensor, step: Tensor) -> Tensor:
    return rolled.answers[rollout, step, torch.arange(len(rollout), device=rollout.device)]


def _all_steps(rolled: Rolled) -> Tensor:
    _, steps, puzzles = rolled.q.shape
    return torch.full((puzzles,), steps, device=rolled.q.device)


def by_residual(rolled: Rolled) -> Chosen:
    """The rollout whose answer has moved least over the last steps."""
    steps = _all_steps(rolled)
    last = rolled.moved[:, 1:][:, -LAST:] if rolled.moved.shape[1] > 1 else rolled.moved
    return _at(rolled, last.mean(dim=1).argmin(dim=0), steps - 1), steps


def by_q(rolled: Rolled) -> Chosen:
    """The rollout that is surest in the end."""
    steps = _all_steps(rolled)
    return _at(rolled, rolled.q[:, -1].argmax(dim=0), steps - 1), steps


def by_first(rolled: Rolled) -> Chosen:
    """The rollout that is the first to be willing to halt (q > 0), the surest of several; without one as `by_q`.

    All rollouts end at that step.
    """
    willing = (rolled.q > 0).any(dim=0)  # [D, N]
    steps = torch.where(willing.any(dim=0), willing.int().argmax(dim=0) + 1, _all_steps(rolled))
    at_step = rolled.q.gather(1, (steps - 1).expand(len(rolled.q), 1, -1))[:, 0]
    return _at(rolled, at_step.argmax(dim=0), steps - 1), steps


def by_vote(rolled: Rolled) -> Chosen:
    """The answer that most rollouts agree on as a whole; the surest of those with as many."""
    answers, steps = rolled.answers[:, -1], _all_steps(rolled)
    votes = torch.stack([(answers == answer).all(dim=-1).sum(dim=0) for answer in answers])  # [R, N]
    return _at(rolled, (votes + 0.5 * torch.sigmoid(rolled.q[:, -1])).argmax(dim=0), steps - 1), steps


def by_vote_cells(rolled: Rolled) -> Chosen:
    """In each position what most rollouts have there; the smallest token of those with as many."""
    return rolled.answers[:, -1].cpu().mode(dim=0).values.to(rolled.answers.device), _all_steps(rolled)


RULES: dict[str, Callable[[Rolled], Chosen]] = {
    "residual": by_residual,
    "q": by_q,
    "first": by_first,
    "vote": by_vote,
    "vote_cells": by_vote_cells,
}
