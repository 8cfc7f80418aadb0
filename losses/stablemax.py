"""Per-token cross-entropy: stablemax (Prieto et al. 2025, arXiv 2501.04697) and softmax.

stablemax replaces exp with s(x) = x + 1 for x >= 0 and 1 / (1 - x) for x < 0, so p_i = s(x_i) / Σ s.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100


def log_s(x: Tensor) -> Tensor:
    """log s(x) = log1p(x) for x >= 0, -log1p(-x) for x < 0; same shape and dtype.

    The arguments are clamped because torch.where would turn the infinite derivative of the unused branch at x = 1 into
    NaN (0 · inf).
    """
    return torch.where(x >= 0, torch.log1p(x.clamp(min=0)), -torch.log1p(-x.clamp(max=0)))


def stablemax_cross_entropy(
    logits: Tensor, labels: Tensor, *, dtype: torch.dtype = torch.float32, smoothing: float = 0.0
) -> Tensor:
    """Loss [...] of logits [..., V] and labels [...] int, in at least `dtype`; 0 where the label is -100.

    Label smoothing s: the target is 1 - s on the label plus s / V on every token (Szegedy et al. 2016).
    """
    return _token_loss(log_s(upcast(logits, dtype)), labels, smoothing)


def softmax_cross_entropy(
    logits: Tensor, labels: Tensor, *, dtype: torch.dtype = torch.float32, smoothing: float = 0.0
) -> Tensor:
    """As `stablemax_cross_entropy`, with s = exp."""
    return _token_loss(upcast(logits, dtype), labels, smoothing)


def upcast(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, dtype))


def _token_loss(scores: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-log_softmax(scores)[label], smoothed with the mean over the vocabulary: [..., V] -> [...], 0 where ignored."""
    scored = labels != IGNORE
    index = labels.masked_fill(~scored, 0).long().unsqueeze(-1)
    log_p = scores.log_softmax(-1)
    loss = -log_p.gather(-1, index).squeeze(-1)
    if smoothing:
        loss = torch.lerp(loss, -log_p.mean(-1), smoothing)
    return torch.where(scored, loss, loss.new_zeros(()))
