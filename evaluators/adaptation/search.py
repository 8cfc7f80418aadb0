"""Search for the latent that best explains the demonstrations, before answering the question (LPN, arXiv 2411.08706).

    S(z) = Σ_i mean_cells log p(y_i | x_i, z)  −  λ/2 ‖z − z₀‖²,      i over the demonstrations of a row

With `demo_augs` each term is the mean over the demonstration and its transformed and recoloured copies, so that a z
that encodes the outputs of the demonstrations rather than their rule scores lower.

z is the latent of a variational encoder, or the context itself. Rows are independent: score, clipped gradient and Adam
moments are per row, so the rest of the batch changes nothing but rounding.

B rows, at most K demonstrations, N existing demonstrations, M copies of each, R iterates over all starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dataset.arc.augment import COLOURS, SWAPS
from engine.distributed import keyed_generator, keyed_numpy
from engine.fields import Inert, Range, check_fields
from evaluators.adaptation.adam import Adam
from evaluators.adaptation.examples import (
    Batch,
    Pairs,
    TokenLoss,
    all_correct,
    augment_pairs,
    demonstration_pairs,
    draw_augmentations,
    leave_one_out,
    log_likelihood,
    select_rows,
)

_NO_GRADIENT = Inert("mode=random_search", "mode=random_search follows no gradient")
_NO_COPIES = Inert("demo_augs=0", "demo_augs=0 scores no copies")
TURNS = len(SWAPS) - 1
"""Number of rotations and reflections of a grid, without the identity."""


@dataclass(kw_only=True)
class SearchConfig:
    """How to search; the defaults are LPN's."""

    mode: Literal["gradient_ascent", "random_search"] = "gradient_ascent"
    """Follow the gradient of the score, or try random points around the start."""
    space: Literal["latent", "context"] = "latent"
    """Search for the latent, or for the whole context (always for encoders without a latent)."""
    budgets: list[int] = field(default_factory=lambda: [0, 1, 5, 20])
    """Numbers of updates (random search: points) after which the best so far answers; 0: the encoder's own answer."""
    lr: Annotated[float, Range(above=0)] = 0.1
    """Step size."""
    optimizer: Annotated[Literal["adam", "sgd"], _NO_GRADIENT] = "adam"
    """Optimizer of the search."""
    lr_schedule: Annotated[Literal["constant", "cosine"], _NO_GRADIENT] = "constant"
    """Constant step size, or decay to 0 over the largest budget as the root of a cosine (LPN's)."""
    b2: Annotated[float, Range(0, below=1)] = 0.9
    """Adam's second-moment decay; the first-moment decay is 0.9."""
    clip: Annotated[float, Range(above=0)] = 1.0
    """Maximum norm of a row's gradient."""
    scale: Annotated[float, Range(above=0)] = 0.5
    """Standard deviation of random points around the start."""
    num_perturbations: Annotated[int, Range(0), _NO_GRADIENT] = 0
    """Additional ascents from this many random points around the start; the best iterate of all answers."""
    include_all_latents: Annotated[bool, _NO_GRADIENT] = False
    """Additional ascents from the mean of each posterior (lpn_variational: of each demonstration), if there are
    several."""
    prior_weight: Annotated[float, Range(0)] = 0.0
    """Weight λ of the pull back to the start."""
    select: Literal["best", "leave_one_out"] = "best"
    """Answer with the iterate of best score, or after the number of updates that best answers left-out
    demonstrations."""
    act_steps: Annotated[int, Range(1)] = 1
    """ACT steps for computing a score; the question is answered with all."""
    demo_augs: Annotated[int, Range(0)] = 0
    """Rotated, reflected and recoloured copies of each demonstration that are scored with it; 0: none."""
    turn: Annotated[bool, _NO_COPIES] = True
    """Rotate and reflect these copies; false: for rules about directions."""
    recolour: Annotated[bool, _NO_COPIES] = True
    """Permute the colours of these copies; false: for rules about particular colours."""
    microbatch: Annotated[int | None, Range(1)] = None
    """Rows that are searched at a time, which limits memory and changes no result; null: the whole batch."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.demo_augs and not (self.turn or self.recolour):
            raise ValueError(f"demo_augs={self.demo_augs}: nothing changes in the copies, set turn or recolour to true")
        if self.demo_augs > TURNS and not self.recolour:
            raise ValueError(f"demo_augs={self.demo_augs}: expected at most {TURNS} with recolour=false")
        if not self.budgets or min(self.budgets) < 0:
            raise ValueError(f"budgets={self.budgets}: expected numbers from 0, e.g. [0, 1, 5, 20]")


class Space:
    """Search space: the latent, or the context. z has at least float32."""

    def __init__(self, model: Any, kind: str = "latent") -> None:
        self.model = model
        self.latent = kind == "latent" and bool(getattr(model.encoder, "VARIATIONAL", False))

    @torch.no_grad()
    def start(self, batch: Batch) -> Tensor:
        """Starting point z₀ [B, Z], or [B, C, D] for an encoder without a latent."""
        encoded = self.model.encode(batch)
        out: Tensor = encoded.latent if self.latent else encoded.context
        return out.to(torch.promote_types(out.dtype, torch.float32))

    @torch.no_grad()
    def posterior_means(self, batch: Batch) -> list[Tensor]:
        """The mean of each posterior, [B, Z] each, if there are several; rows without that demonstration get the
        start."""
        encoded = self.model.encode(batch) if self.latent else None
        if encoded is None or encoded.mu.shape[1] == 1:
            return []
        start, means = self.start(batch), encoded.mu
        if self.model.encoder.by_demonstration:
            means = torch.where(batch["demo_mask"].unsqueeze(-1), means, start.unsqueeze(1).to(means.dtype))
        return [mean.to(start.dtype) for mean in means.unbind(1)]

    def context(self, z: Tensor) -> Tensor:
        """Decode z to a context [B, C, D]."""
        out: Tensor = self.model.encoder.context_of(z) if self.latent else z
        return out


class Objective:
    """The score S(z) of each row of a batch."""

    def __init__(self, space: Space, batch: Batch, token_loss: TokenLoss, config: SearchConfig, seed: int = 0) -> None:
        self.space, self.token_loss, self.act_steps = space, token_loss, config.act_steps
        self.pairs, self.rows = demonstration_pairs(batch), len(batch["inputs"])
        self.scored = with_copies(self.pairs, config, seed)
        self.share = 1 / (1 + config.demo_augs)

    def logits(self, z: Tensor, pairs: Pairs) -> Tensor:
        """Logits [N, T, V] of every pair."""
        context = self.space.context(z)[pairs.owner]
        out: Tensor = self.space.model.decode_with_context(
            {"inputs": pairs.inputs}, context, act_steps=self.act_steps
        ).logits
        return out

    def __call__(self, z: Tensor) -> Tensor:
        """S(z) [B], without the prior term."""
        scores = log_likelihood(self.logits(z, self.scored), self.scored.labels, self.token_loss) * self.share
        return scores.new_zeros(self.rows).index_add(0, self.scored.owner, scores)

    def solved(self, z: Tensor) -> Tensor:
        """Share of each row's own demonstrations that are answered correctly, [B]."""
        hits = all_correct(self.logits(z, self.pairs), self.pairs.labels).to(torch.float32)
        count = torch.zeros(self.rows, device=hits.device).index_add(0, self.pairs.owner, torch.ones_like(hits))
        return torch.zeros_like(count).index_add(0, self.pairs.owner, hits) / count.clamp(min=1)


def with_copies(pairs: Pairs, config: SearchConfig, seed: int) -> Pairs:
    """Append M augmented copies of each demonstration: [N] -> [N + M N].

    All demonstrations get the same M augmentations, so that a row's result does not depend on the other rows.
    """
    if not config.demo_augs:
        return pairs
    generator = keyed_numpy(seed, "latent_search_copies")
    tids, tables = draw_augmentations(generator, config.demo_augs)
    if not config.recolour:  # distinct, and without the identity
        tids, tables = 1 + generator.permutation(TURNS)[: config.demo_augs], np.tile(np.arange(COLOURS), (len(tids), 1))
    elif not config.turn:
        tids = np.zeros_like(tids)
    return pairs.concat([augment_pairs(pairs, tid, table) for tid, table in zip(tids, tables, strict=True)])


def split_rows(batch: Batch, rows: int | None) -> list[Batch]:
    """Split a batch into pieces of at most `rows` rows (None: one piece); an empty batch gives no pieces."""
    index = torch.arange(len(batch["inputs"]), device=batch["inputs"].device)
    return [select_rows(batch, piece) for piece in index.split(rows or max(1, len(index))) if len(piece)]


@dataclass
class SearchResult:
    """The best latents after each budget, with scores and steps [B]."""

    latents: dict[int, Tensor]
    runners_up: dict[int, Tensor]
    """The second-best latents, for budgets above 0."""
    first: Tensor
    """S of the start."""
    scores: dict[int, Tensor]
    """S of the best latents."""
    steps: Tensor
    """Number of updates of the best latents at the largest budget."""


def iterates(objective: Objective, start: Tensor, config: SearchConfig, seed: int) -> list[tuple[Tensor, Tensor]]:
    """(z, S(z) [B]) of the start and of every update (random search: point) after it."""
    budget = max(config.budgets)
    if config.mode == "random_search":
        # One set of offsets for all rows, so that a row's result does not depend on the other rows.
        generator = keyed_generator(seed, "latent_search")
        offsets = torch.randn(budget, *start.shape[1:], generator=generator).to(start)
        points = [start, *(start + config.scale * offset for offset in offsets)]
        with torch.no_grad():
            return [(z, objective(z)) for z in points]
    out: list[tuple[Tensor, Tensor]] = []
    z, adam = start, Adam([start], lr=config.lr, b2=config.b2) if config.optimizer == "adam" else None
    for number in range(1, budget + 2):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            score = objective(z)
            if number > budget:
                out.append((z.detach(), score.detach()))
                break
            pull = config.prior_weight * 0.5 * (z - start).square().flatten(1).sum(1)
            (gradient,) = torch.autograd.grad((score - pull).sum(), z)
        out.append((z.detach(), score.detach()))
        norm = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.dim() - 1))
        gradient = gradient * (config.clip / norm.clamp(min=config.clip))
        decay = 1.0
        if config.lr_schedule == "cosine":
            decay = math.sqrt(0.5 * (1 + math.cos(math.pi * (number - 1) / budget)))
        z = z.detach() + decay * (config.lr * gradient if adam is None else adam.step([gradient])[0])
    return out


def all_iterates(objective: Objective, batch: Batch, config: SearchConfig, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """z [R, B, ...], S(z) [R, B] and number of updates [R] of all iterates; those of the encoder's start come first."""
    start = objective.space.start(batch)
    starts = [start]
    if config.mode == "gradient_ascent":
        generator = keyed_generator(seed, "latent_search_starts")
        offsets = torch.randn(config.num_perturbations, *start.shape[1:], generator=generator).to(start)
        starts += [start + config.scale * offset for offset in offsets]
        starts += objective.space.posterior_means(batch) if config.include_all_latents else []
    paths = [iterates(objective, each, config, seed) for each in starts]
    points, scores = (torch.stack([pair[part] for path in paths for pair in path]) for part in (0, 1))
    return points, scores, torch.arange(len(paths[0]), device=scores.device).repeat(len(paths))


def search(space: Space, batch: Batch, token_loss: TokenLoss, config: SearchConfig, seed: int = 0) -> SearchResult:
    """Search for the best latent of each row after each budget. The model is not changed.

    With `select=leave_one_out` the number of updates is chosen by how well a held-out demonstration is answered,
    averaged over the demonstrations of a row; rows with a single demonstration keep the start.
    """
    points, scores, updates = all_iterates(Objective(space, batch, token_loss, config, seed), batch, config, seed)
    criterion = scores
    if config.select == "leave_one_out":
        held_out = held_out_scores(space, batch, token_loss, config, seed)
        criterion = torch.zeros_like(scores) if held_out is None else held_out
    rows = torch.arange(scores.shape[1], device=scores.device)
    latents, runners_up, best_scores, steps = {}, {}, {}, torch.zeros_like(rows)
    for budget in sorted(set(config.budgets)):
        reached = (updates <= budget).nonzero()[:, 0] if budget else rows.new_zeros(1)  # 0: only the encoder's own
        order = criterion[reached].argsort(dim=0, descending=True, stable=True)  # ties: the earliest first
        best = reached[order[0]]
        latents[budget], best_scores[budget], steps = points[best, rows], scores[best, rows], updates[best]
        if budget:
            runners_up[budget] = points[reached[order[1]], rows]
    return SearchResult(latents, runners_up, scores[0], best_scores, steps)


def held_out_scores(
    space: Space, batch: Batch, token_loss: TokenLoss, config: SearchConfig, seed: int
) -> Tensor | None:
    """Mean score [R, B] of the iterates on held-out demonstrations; None if no row has two demonstrations."""
    folds, owner = leave_one_out(batch)
    rows, device = len(batch["inputs"]), batch["inputs"].device
    if not len(owner):
        return None
    count = torch.zeros(rows, device=device).index_add(0, owner, torch.ones(len(owner), device=device))
    parts = []
    for fold in split_rows(folds, config.microbatch):
        points, _, _ = all_iterates(Objective(space, fold, token_loss, config, seed), fold, config, seed)
        parts.append(torch.stack([_held_out_logp(space, fold, z, token_loss, config) for z in points]))
    scores = torch.cat(parts, 1)  # [R, folds]
    return scores.new_zeros(len(scores), rows).index_add(1, owner, scores) / count.clamp(min=1)


@torch.no_grad()
def _held_out_logp(space: Space, fold: Batch, z: Tensor, token_loss: TokenLoss, config: SearchConfig) -> Tensor:
    """Mean log p of the held-out answer of each row of `fold`: [folds] float32."""
    logits = space.model.decode_with_context(fold, space.context(z), act_steps=config.act_steps).logits
    return log_likelihood(logits, fold["labels"], token_loss).float()


def answer(space: Space, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor]:
    """Answer the questions of a batch with all ACT steps of the model: (answers [B, T], q_halt [B])."""
    with torch.no_grad():
        output = space.model.decode_with_context(batch, space.context(z), act_steps=space.model.halt_max_steps)
    return output.logits.argmax(-1), output.q_halt_logits


def row_sums(values: Sequence[Tensor]) -> Tensor:
    """The sum of each of several tensors [B], and B: float64 on the CPU."""
    return torch.tensor([*(float(v.double().sum()) for v in values), float(len(values[0]))], dtype=torch.float64)
