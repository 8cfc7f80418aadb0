"""Encoders with a latent z that the context is decoded from: what is sampled in training and searched in at test time.

A latent is the mean of n samples, each of its own posterior: of a demonstration, as in Latent Program Networks
(arXiv 2411.08706), or of a token that the aggregation made. The mean of samples of N(μ_i, σ_i²) is one of
N(mean μ_i, Σσ_i²/n²), so one draw for each row serves.

The differences between tasks are about 1 % of the variance of a fresh encoder's vectors, and σ begins at 1. Two things
let them grow out of the noise; without them similar tasks stay indistinguishable (docs/results/etrm-encoders.md):
the mean of n samples has less noise than one, and the mean demonstration is added to what the aggregation makes.

Shapes: B rows, K demonstrations, N posteriors of a row (K, T or 1), T context tokens, D width, Z latent numbers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.encoders.aggregation import masked_mean
from models.encoders.base import DemoEncoder, EncoderOutput
from models.encoders.latent import Posterior, kl_divergence, sample
from models.layers import CastedLinear

AGGREGATED = 0.1
"""Share of what a fresh aggregation makes of the demonstrations; their mean has 1."""


class VariationalEncoder(DemoEncoder):
    """As DemoEncoder, with `context_of(latent)`; the KL of a row is the mean of those of its posteriors."""

    VARIATIONAL: ClassVar = True
    PER_DEMONSTRATION: ClassVar[bool] = False
    """A posterior for each demonstration, where the aggregation is the mean."""

    def __init__(self, config: Any, shape: Any, *, dtype: torch.dtype, attention: str) -> None:
        super().__init__(config, shape, dtype=dtype, attention=attention)
        self.posterior = Posterior(config.hidden_size, self.noise_width, config.rms_norm_eps)
        self.gain = None
        if self.aggregation != "mean":
            self.gain = nn.Parameter(torch.full((config.hidden_size,), AGGREGATED))

    def _output(self, width: int) -> nn.Module:
        return CastedLinear(self.noise_width, self.config.context_len * self.config.hidden_size)

    @property
    def by_demonstration(self) -> bool:
        """Whether each demonstration has a posterior; else each token of the aggregation has."""
        return self.PER_DEMONSTRATION and self.aggregation == "mean"

    @property
    def noise_width(self) -> int:
        """Z."""
        width: int = self.config.latent_dim or self.config.hidden_size
        return width

    def forward(
        self,
        demo_inputs: Tensor,
        demo_labels: Tensor,
        demo_mask: Tensor,
        *,
        noise: Tensor | None = None,
    ) -> EncoderOutput:
        vectors, mask = self.pairs(demo_inputs, demo_labels, demo_mask), demo_mask
        if not self.by_demonstration:
            vectors = self._tokens(vectors, mask)
            mask = mask.new_ones(vectors.shape[:2])
        mu, logvar = self.posterior(vectors)  # [B, N, Z]
        count = mask.sum(1, keepdim=True).clamp(min=1)
        centre, variance = masked_mean(mu, mask), masked_mean(logvar.exp(), mask) / count
        kl = masked_mean(kl_divergence(mu, logvar).unsqueeze(-1), mask).squeeze(-1)
        latent = sample(centre, variance, noise) if self.training else centre
        sigma = masked_mean((0.5 * logvar.detach()).exp(), mask).mean(1)
        return EncoderOutput(self.context_of(latent), kl, mu, logvar, sigma, latent, centre)

    def _tokens(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """The demonstrations [B, K, D] aggregated, beside their mean: [B, 1 or T, D]."""
        made: Tensor = self.aggregate(vectors, mask)
        if self.gain is None:
            return made
        return masked_mean(vectors, mask).unsqueeze(1) + self.gain.to(made.dtype) * made

    @property
    def shift_shape(self) -> tuple[int, ...]:
        return (self.noise_width,)

    def moved(self, encoded: EncoderOutput, shift: Tensor) -> Tensor:
        """As DemoEncoder; added to the latent."""
        assert encoded.latent is not None
        return self.context_of(encoded.latent + shift)

    def context_of(self, latent: Tensor) -> Tensor:
        """latent [B, Z] -> context [B, T, D]."""
        return self.laid_out(latent.unsqueeze(1))
