"""Rules that select one of several rollouts of a puzzle as the answer, without labels.

R rollouts, D ACT steps, N puzzles, T positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LAST = 3
"""Number of final steps that the residual is averaged over."""


@dataclass(frozen=True)
class RolloutOutputs:
    """Outputs of the rollouts at every ACT step."""

    answers: Tensor
    """[R, D, N, T]"""
    q: Tensor
    """q_halt [R, D, N]: the model's confidence in its answer."""
    residual: Tensor
    """‖logits_t - logits_{t-1}‖ averaged over positions, [R, D, N]; infinite at the first step."""

    def cut(self, rollouts: int, steps: int) -> RolloutOutputs:
        """The first `rollouts` rollouts and `steps` steps."""
        return RolloutOutputs(*(part[:rollouts, :steps] for part in (self.answers, self.q, self.residual)))


Chosen = tuple[Tensor, Tensor]
"""(answers [N, T], number of steps needed [N])."""


def _at(outputs: RolloutOutputs, rollout: Tensor, step: Tensor) -> Tensor:
    return outputs.answers[rollout, step, torch.arange(len(rollout), device=rollout.device)]


def _all_steps(outputs: RolloutOutputs) -> Tensor:
    _, steps, puzzles = outputs.q.shape
    return torch.full((puzzles,), steps, device=outputs.q.device)


def by_residual(outputs: RolloutOutputs) -> Chosen:
    """The rollout of smallest residual over the last steps."""
    steps = _all_steps(outputs)
    last = outputs.residual[:, 1:][:, -LAST:] if outputs.residual.shape[1] > 1 else outputs.residual
    return _at(outputs, last.mean(dim=1).argmin(dim=0), steps - 1), steps


def by_q(outputs: RolloutOutputs) -> Chosen:
    """The rollout of largest q_halt at the last step."""
    steps = _all_steps(outputs)
    return _at(outputs, outputs.q[:, -1].argmax(dim=0), steps - 1), steps


def by_first(outputs: RolloutOutputs) -> Chosen:
    """The first rollout to halt (q_halt > 0), of several the one of largest q_halt; as `by_q` if none halts.

    All rollouts stop at that step.
    """
    halts = (outputs.q > 0).any(dim=0)  # [D, N]
    steps = torch.where(halts.any(dim=0), halts.int().argmax(dim=0) + 1, _all_steps(outputs))
    at_step = outputs.q.gather(1, (steps - 1).expand(len(outputs.q), 1, -1))[:, 0]
    return _at(outputs, at_step.argmax(dim=0), steps - 1), steps


def by_vote(outputs: RolloutOutputs) -> Chosen:
    """The answer that most rollouts agree on as a whole; ties go to the largest q_halt."""
    answers, steps = outputs.answers[:, -1], _all_steps(outputs)
    votes = torch.stack([(answers == answer).all(dim=-1).sum(dim=0) for answer in answers])  # [R, N]
    return _at(outputs, (votes + 0.5 * torch.sigmoid(outputs.q[:, -1])).argmax(dim=0), steps - 1), steps


def by_vote_cells(outputs: RolloutOutputs) -> Chosen:
    """The most frequent token at each position; ties go to the smallest token."""
    return outputs.answers[:, -1].cpu().mode(dim=0).values.to(outputs.answers.device), _all_steps(outputs)


RULES: dict[str, Callable[[RolloutOutputs], Chosen]] = {
    "residual": by_residual,
    "q": by_q,
    "first": by_first,
    "vote": by_vote,
    "vote_cells": by_vote_cells,
}
