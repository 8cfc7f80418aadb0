"""Search for the latent that explains the demonstrations best, before the question is asked (LPN, arXiv 2411.08706).

    S(z) = Σ_i mean_cells log p(y_i | x_i, z)  −  λ/2 ‖z − z₀‖²,      i over the demonstrations of a row

z is the latent of a variational encoder, or the context itself. Rows are independent of one another: the score, the
clipped gradient and Adam's moments are those of a row, so the batch that a row comes in changes nothing but rounding.

B rows, K demonstrations at most, N demonstrations that exist, R iterates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from engine.distributed import keyed_generator
from engine.fields import Range, check_fields
from evaluators.adaptation.adam import Adam
from evaluators.adaptation.examples import (
    Batch,
    TokenLoss,
    leave_one_out,
    log_likelihood,
    pairs_of,
    right,
)


@dataclass(kw_only=True)
class SearchConfig:
    """How to search; the defaults are LPN's."""

    mode: Literal["gradient_ascent", "random_search"] = "gradient_ascent"
    """Follow the gradient of the score, or try points around the start."""
    budgets: list[int] = field(default_factory=lambda: [0, 1, 5, 20])
    """Updates (of random search: points) after which the best so far answers; 0 is the encoder's own."""
    lr: Annotated[float, Range(above=0)] = 0.1
    """Step size of Adam."""
    b2: Annotated[float, Range(0, below=1)] = 0.9
    """Its second-moment decay; the first-moment decay is 0.9."""
    clip: Annotated[float, Range(above=0)] = 1.0
    """Largest norm of a row's gradient."""
    scale: Annotated[float, Range(above=0)] = 0.5
    """Standard deviation of the points of random search around the start."""
    prior_weight: Annotated[float, Range(0)] = 0.0
    """λ, the pull back to the start."""
    select: Literal["best", "leave_one_out"] = "best"
    """The iterate with the best score, or as many updates as answer demonstrations best that are left out."""
    act_steps: Annotated[int, Range(1)] = 1
    """ACT steps of the model for a score; the question is answered with all."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.budgets or min(self.budgets) < 0:
            raise ValueError(f"budgets={self.budgets}: expected numbers from 0, e.g. [0, 1, 5, 20]")


class Space:
    """What is searched in: `start(batch) -> z₀` and `context(z)`; z has at least float32."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.latent = bool(getattr(model.encoder, "VARIATIONAL", False))

    @torch.no_grad()
    def start(self, batch: Batch) -> Tensor:
        """[B, Z], or [B, C, D] of an encoder without a latent."""
        encoded = self.model.encode(batch)
        out: Tensor = encoded.latent if self.latent else encoded.context
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def context(self, z: Tensor) -> Tensor:
        """[B, C, D]"""
        out: Tensor = self.model.encoder.context_of(z) if self.latent else z
        return out


class Objective:
    """S(z) of each row of a batch."""

    def __init__(self, space: Space, batch: Batch, token_loss: TokenLoss, act_steps: int) -> None:
        self.space, self.token_loss, self.act_steps = space, token_loss, act_steps
        self.pairs, self.rows = pairs_of(batch), len(batch["inputs"])

    def logits(self, z: Tensor) -> Tensor:
        """Of every demonstration, [N, T, V]."""
        context = self.space.context(z)[self.pairs.owner]
        out: Tensor = self.space.model.decode_with_context(
            {"inputs": self.pairs.inputs}, context, act_steps=self.act_steps
        ).logits
        return out

    def __call__(self, z: Tensor) -> Tensor:
        """[B]"""
        scores = log_likelihood(self.logits(z), self.pairs.labels, self.token_loss)
        return scores.new_zeros(self.rows).index_add(0, self.pairs.owner, scores)

    def solved(self, z: Tensor) -> Tensor:
        """The share of a row's demonstrations that are answered right, [B]."""
        hits = right(self.logits(z), self.pairs.labels).to(torch.float32)
        count = torch.zeros(self.rows, device=hits.device).index_add(0, self.pairs.owner, torch.ones_like(hits))
        return torch.zeros_like(count).index_add(0, self.pairs.owner, hits) / count.clamp(min=1)


@dataclass
class SearchResult:
    """The latent that answers after each budget, and what was measured on the way, [B] each."""

    latents: dict[int, Tensor]
    seconds: dict[int, Tensor]
    """The second best, of budgets above 0."""
    first: Tensor
    """S of the start."""
    scores: dict[int, Tensor]
    """S of what was chosen."""
    steps: Tensor
    """Updates of what was chosen with the largest budget."""


def iterates(objective: Objective, start: Tensor, config: SearchConfig, seed: int) -> list[tuple[Tensor, Tensor]]:
    """(z, S(z) [B]) of the start and of every update or point after it."""
    most = max(config.budgets)
    if config.mode == "random_search":
        # One set of offsets for all rows: what a row finds does not depend on the rows beside it.
        generator = keyed_generator(seed, "latent_search")
        offsets = torch.randn(most, *start.shape[1:], generator=generator).to(start)
        points = [start, *(start + config.scale * offset for offset in offsets)]
        with torch.no_grad():
            return [(z, objective(z)) for z in points]
    out: list[tuple[Tensor, Tensor]] = []
    z, adam = start, Adam([start], lr=config.lr, b2=config.b2)
    for number in range(1, most + 2):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            score = objective(z)
            if number > most:
                out.append((z.detach(), score.detach()))
                break
            pull = config.prior_weight * 0.5 * (z - start).square().flatten(1).sum(1)
            (gradient,) = torch.autograd.grad((score - pull).sum(), z)
        out.append((z.detach(), score.detach()))
        norm = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.dim() - 1))
        gradient = gradient * (config.clip / norm.clamp(min=config.clip))
        z = z.detach() + adam.step([gradient])[0]
    return out


def search(space: Space, batch: Batch, token_loss: TokenLoss, config: SearchConfig, seed: int = 0) -> SearchResult:
    """The best latent of each row after each budget. No parameter of the model changes.

    With `select=leave_one_out` the number of updates is the one after which a demonstration that is left out of start
    and score is answered best, on the average over all of a row's; rows with a single demonstration keep the start.
    """
    objective, start = Objective(space, batch, token_loss, config.act_steps), space.start(batch)
    path = iterates(objective, start, config, seed)
    points, scores = torch.stack([z for z, _ in path]), torch.stack([score for _, score in path])  # [R, B, ...], [R, B]
    worth = scores if config.select == "best" else held_out_scores(space, batch, token_loss, config, seed)
    rows = torch.arange(len(start), device=start.device)
    latents, seconds, chosen, steps = {}, {}, {}, torch.zeros_like(rows)
    for budget in sorted(set(config.budgets)):
        ranked = worth[: budget + 1].argsort(dim=0, descending=True, stable=True)  # of equal ones the earliest first
        steps = ranked[0]
        latents[budget], chosen[budget] = points[steps, rows], scores[steps, rows]
        if budget:
            seconds[budget] = points[ranked[1], rows]
    return SearchResult(latents, seconds, scores[0], chosen, steps)


def held_out_scores(space: Space, batch: Batch, token_loss: TokenLoss, config: SearchConfig, seed: int) -> Tensor:
    """How well the iterates answer a demonstration that is left out, mean over a row's: [R, B]."""
    folds, owner = leave_one_out(batch)
    rows, most = len(batch["inputs"]), max(config.budgets)
    device = batch["inputs"].device
    out = torch.zeros(most + 1, rows, device=device)
    if not len(owner):
        return out
    path = iterates(Objective(space, folds, token_loss, config.act_steps), space.start(folds), config, seed)
    count = torch.zeros(rows, device=device).index_add(0, owner, torch.ones(len(owner), device=device))
    for number, (z, _) in enumerate(path):
        with torch.no_grad():
            logits = space.model.decode_with_context(folds, space.context(z), act_steps=config.act_steps).logits
        score = log_likelihood(logits, folds["labels"], token_loss).to(out.dtype)
        out[number].index_add_(0, owner, score)
    return out / count.clamp(min=1)


def answered(space: Space, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor]:
    """(answers [B, T], q_halt [B]) to the questions of a batch, with all ACT steps of the model."""
    with torch.no_grad():
        output = space.model.decode_with_context(batch, space.context(z), act_steps=space.model.halt_max_steps)
    return output.logits.argmax(-1), output.q_halt_logits


def summed(values: Sequence[Tensor]) -> Tensor:
    """Sums of several rows of numbers [B] and their count, float64 on the CPU."""
    return torch.tensor([*(float(v.double().sum()) for v in values), float(len(values[0]))], dtype=torch.float64)
