"""Encoders that decode the context from a latent z, which is sampled in training and can be searched at test time.

The latent is the mean of n samples, one from each posterior: of a demonstration, as in Latent Program Networks
(arXiv 2411.08706), or of a token of the aggregation. The mean of samples of N(μ_i, σ_i²) is a sample of
N(mean μ_i, Σσ_i²/n²), so one draw per row is enough.

Differences between tasks are about 1 % of the variance of a fresh encoder's vectors, and σ starts at 1. Two things let
them grow out of the noise; without them similar tasks stay indistinguishable (docs/results/etrm-encoders.md): the mean
of n samples has less noise than one sample, and the mean demonstration is added to the output of the aggregation.

Shapes: B rows, K demonstrations, N posteriors of a row (K, T or 1), T context tokens, D width, Z latent dimensions.
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
"""Initial gain of the aggregation's output; the mean demonstration, to which it is added, has gain 1."""


class VariationalEncoder(DemoEncoder):
    """DemoEncoder with a latent, decoded by `context_of(latent)`. The KL of a row is the mean over its posteriors."""

    VARIATIONAL: ClassVar = True
    PER_DEMONSTRATION: ClassVar[bool] = False
    """One posterior per demonstration, if the aggregation is the mean."""

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
        """Whether there is one posterior per demonstration; else one per token of the aggregation."""
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
        """Aggregate the demonstrations [B, K, D] and add their mean: [B, 1 or T, D]."""
        out: Tensor = self.aggregate(vectors, mask)
        if self.gain is None:
            return out
        return masked_mean(vectors, mask).unsqueeze(1) + self.gain.to(out.dtype) * out

    @property
    def shift_shape(self) -> tuple[int, ...]:
        return (self.noise_width,)

    def apply_shift(self, encoded: EncoderOutput, shift: Tensor) -> Tensor:
        """The context decoded from the latent plus `shift` [B, Z]."""
        assert encoded.latent is not None
        return self.context_of(encoded.latent + shift)

    def context_of(self, latent: Tensor) -> Tensor:
        """Decode a latent [B, Z] to a context [B, T, D]."""
        return self.to_context(latent.unsqueeze(1))
