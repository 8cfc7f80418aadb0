"""Does the encoder distinguish tasks, and does the decoder use it? Metrics of training batches, as (sum, count) pairs.

    var_ratio     variance of the contexts over the batch / their mean square: near 0, all tasks look alike
    mean_cos      mean cosine between the contexts of two rows; 1: collapse
    token_cos     mean cosine between two tokens of a context; 1: all tokens are equal
    context_rms   RMS of the encoder's output
    eff_rank      exp of the entropy of the singular values of the centred contexts, 1 to b - 1
    fisher        variance between groups / variance within groups, for batches with two rows of a group
    sigma         standard deviation of the posteriors: at 1, the prior's, noise hides the differences between tasks
    active_units  share of latent units whose mean varies (variance above 0.01) over the batch
    context_use   token loss with the context of another row minus that with its own; 0: the context is not used
    context_use_exact   the same for exact accuracy, own minus other
    grad_coverage       share of rows whose context received a gradient in the step before

Metrics that are not due have count 0, so that names never change during a run. Each covers the b rows of one
micro-batch on one rank; the log has the mean over those. Shapes: b rows, C tokens, D width, Z latent units.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.task import Metrics
from losses.stablemax import IGNORE
from models.recursive_reasoning.act import ACTCarry

_ACTIVE = 0.01


@torch.no_grad()
def context_metrics(
    context: Tensor, groups: Tensor, mu: Tensor | None, sigma: Tensor | None = None, *, due: bool
) -> Metrics:
    """Metrics of context [b,C,D] and groups [b] (task of each row); mu [b,Z] and sigma [b] of a variational latent."""
    wide = context.float()
    rows, flat = len(wide), wide.flatten(1)
    centred = flat - flat.mean(0)
    energy = flat.square().mean()
    values = {
        "var_ratio": centred.square().mean() / energy.clamp(min=1e-12),
        "mean_cos": _mean_cosine(flat),
        "token_cos": _mean_cosine(wide).mean(),
        "context_rms": energy.sqrt(),
    }
    if mu is not None:
        values["active_units"] = (mu.float().var(0, correction=0) > _ACTIVE).float().mean()
    if sigma is not None:
        values["sigma"] = sigma.float().mean()
    metrics = {name: (value, torch.ones_like(value)) for name, value in values.items()}
    nothing = torch.zeros_like(energy)
    metrics["eff_rank"] = (_effective_rank(centred), torch.ones_like(energy)) if due and rows > 2 else (nothing,) * 2
    metrics["fisher"] = _fisher(flat, groups) if due else (nothing,) * 2
    return metrics


def _mean_cosine(rows: Tensor) -> Tensor:
    """Mean cosine over all pairs of different rows, [..., n, W] -> [...]; 1 for a single row."""
    n = rows.shape[-2]
    unit = F.normalize(rows, dim=-1)
    total = unit.sum(-2).square().sum(-1)  # all pairs, including each row with itself
    return (total - n) / (n * (n - 1)) if n > 1 else torch.ones_like(total)


def _effective_rank(centred: Tensor) -> Tensor:
    """Computed from the Gram matrix, whose eigenvalues are the squared singular values."""
    singular = torch.linalg.eigvalsh(centred @ centred.t()).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-12)
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


def _fisher(flat: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    same = (groups[:, None] == groups[None, :]).to(flat.dtype)  # [b, b]
    sizes = same.sum(1, keepdim=True)
    centre = same @ flat / sizes  # mean of each row's group
    within = (flat - centre).square().sum() / (len(flat) - (1 / sizes).sum()).clamp(min=1)
    between = (centre - flat.mean(0)).square().mean(0).sum()
    some = ((sizes > 1).any() & (same.sum() < same.numel())).to(flat.dtype)
    return some * between / within.clamp(min=1e-12), some


class ContextUse:
    """Measures how much the decoder uses the context, with the model's own step and token loss.

    `reached` [rows of this rank]: whether each row's context received a gradient in the step before; -1 if unknown.
    """

    def __init__(self, model: Any, token_loss: Any, rows: int) -> None:
        self.model, self.token_loss = model, token_loss
        self.reached = torch.full((rows,), -1.0)

    @torch.no_grad()
    def metrics(
        self, batch: dict[str, Tensor], before: ACTCarry | None, context: Tensor, groups: Tensor, *, due: bool
    ) -> Metrics:
        """`before`: the carry at the start of the step. Only rows whose neighbour is of another group count."""
        other = (groups != groups.roll(1, 0)).float()
        if not due:
            nothing = torch.zeros_like(other.sum())
            return {"context_use": (nothing, nothing), "context_use_exact": (nothing, nothing)}
        own, rolled = (self._score(batch, before, one) for one in (context, context.roll(1, 0)))
        change = [(second - first) * other for first, second in zip(own, rolled, strict=True)]
        return {
            "context_use": (change[0].sum(), other.sum()),
            "context_use_exact": (-change[1].sum(), other.sum()),
        }

    def _score(self, batch: dict[str, Tensor], before: ACTCarry | None, context: Tensor) -> tuple[Tensor, Tensor]:
        """(token loss [b], exact answer [b]) of one step with `context`."""
        labels, logits = self.model.step_with_context(batch, before, context)
        kept = labels != IGNORE
        loss = self.token_loss(logits, labels) / kept.sum(-1, keepdim=True).clamp(min=1)
        return loss.sum(-1), ((logits.argmax(-1) == labels) | ~kept).all(-1).float()

    def coverage(self, context: Tensor, cut: slice) -> Metrics:
        """`grad_coverage` of the rows `cut` in the step before; hooks the gradient of this step's context [b,C,D]."""
        self.reached = self.reached.to(context.device)
        before, place = self.reached[cut].clone(), self.reached
        place[cut] = -1.0

        def record(gradient: Tensor) -> None:
            place[cut] = (gradient != 0).flatten(1).any(1).to(place.dtype)

        if context.requires_grad:
            context.register_hook(record)
        known = before >= 0
        return {"grad_coverage": ((before * known).sum(), known.sum())}
