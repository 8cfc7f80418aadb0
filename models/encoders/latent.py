"""A latent with prior N(0, I): posterior heads, sampling, and KL divergence.

    z = μ + σ ε in training, μ in evaluation;     KL = Σ_Z ½ (μ² + σ² − 1 − log σ²)          (Kingma & Welling 2014)

Shapes: B rows, W input width, Z latent dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import CastedLinear, rms_norm

_LOGVAR = 10.0  # bound on |log σ²|, so that its exponential cannot overflow


class Posterior(nn.Module):
    """[..., W] -> μ, log σ² [..., Z], at least float32. log σ² starts at 0, as in the prior."""

    def __init__(self, width: int, latent: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.mu = CastedLinear(width, latent, bias=True)
        self.logvar = CastedLinear(width, latent, bias=True, init_std=0.0)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        wide = rms_norm(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), self.eps)
        return self.mu(wide), self.logvar(wide).clamp(-_LOGVAR, _LOGVAR)


def sample(mu: Tensor, variance: Tensor, noise: Tensor | None) -> Tensor:
    """Sample μ + σ ε with variance [B, Z] (0 in rows without demonstrations) and ε = `noise` [B, Z], or from torch's
    global generator if None."""
    positive = variance > 0
    sigma = torch.where(positive, variance, 1.0).sqrt() * positive  # sqrt has an infinite gradient at 0
    return mu + sigma * (torch.randn_like(mu) if noise is None else noise.to(mu.dtype))


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)), summed over the last axis. Check: μ = 1, log σ² = 0 -> 0.5 per dimension."""
    return 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar).sum(-1)
