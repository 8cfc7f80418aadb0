"""Per-token cross entropies: stablemax (Prieto et al. 2025, arXiv 2501.04697) and softmax.

stablemax replaces exp by s(x) = x + 1 for x >= 0 and 1 / (1 - x) below, so p_i = s(x_i) / Σ s.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100


def log_s(x: Tensor) -> Tensor:
    """log s(x) = log1p(x) for x >= 0, -log1p(-x) below; same shape and dtype.

    Each branch sees its own half-line only: an unclamped argument would turn the unused branch's infinite
    derivative into NaN (0 · inf) at x = 1.
    """
    return torch.where(x >= 0, torch.log1p(x.clamp(min=0)), -torch.log1p(-x.clamp(max=0)))


def stablemax_cross_entropy(
    logits: Tensor, labels: Tensor, *, dtype: torch.dtype = torch.float32, smoothing: float = 0.0
) -> Tensor:
    """logits [..., V], labels [...] int (-100 ignored) -> loss [...] in at least `dtype`, 0 where ignored.

    `smoothing` s: the target has 1 - s on the label and s / V on every word (Szegedy et al. 2016).
    """
    return _token_loss(log_s(upcast(logits, dtype)), labels, smoothing)


def softmax_cross_entropy(
    logits: Tensor, labels: Tensor, *, dtype: torch.dtype = torch.float32, smoothing: float = 0.0
) -> Tensor:
    """As `stablemax_cross_entropy`, with exp for s."""
    return _token_loss(upcast(logits, dtype), labels, smoothing)


def upcast(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, dtype))


def _token_loss(scores: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-log_softmax(scores)[label] where there is a label, mixed with its mean over all words; [..., V] -> [...]."""
    kept = labels != IGNORE
    index = labels.masked_fill(~kept, 0).long().unsqueeze(-1)
    log_p = scores.log_softmax(-1)
    loss = -log_p.gather(-1, index).squeeze(-1)
    if smoothing:
        loss = torch.lerp(loss, -log_p.mean(-1), smoothing)
    return torch.where(kept, loss, loss.new_zeros(()))
