"""Encoders with a latent z that the context is decoded from: what is sampled in training and searched in at test time.

`bottleneck`: one posterior after the aggregation. `per_demonstration`: one for each demonstration, and z the mean of
their samples, as in Latent Program Networks (arXiv 2411.08706). The mean of n samples of N(μ_i, σ_i²) is a sample of
N(mean μ_i, Σσ_i²/n²), so one draw for each row serves.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.encoders.aggregation import masked_mean
from models.encoders.base import DemoEncoder, EncoderOutput
from models.encoders.latent import Posterior, kl_divergence, sample
from models.layers import CastedLinear


class VariationalEncoder(DemoEncoder):
    """As DemoEncoder, with `context_of(latent)`; the KL of a row is that of its posterior, or the mean of several."""

    VARIATIONAL: ClassVar = True
    PER_DEMONSTRATION: ClassVar[bool] = False
    """A posterior for each demonstration, where the aggregation is the mean."""

    def __init__(self, config: Any, shape: Any, *, dtype: torch.dtype, attention: str) -> None:
        super().__init__(config, shape, dtype=dtype, attention=attention)
        self.posterior = Posterior(config.hidden_size, self.noise_width, config.rms_norm_eps)

    def _output(self, width: int) -> nn.Module:
        return CastedLinear(self.noise_width, self.config.context_len * self.config.hidden_size)

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
        vectors = self.pairs(demo_inputs, demo_labels, demo_mask)
        if self.PER_DEMONSTRATION and self.aggregation == "mean":
            mu, logvar = self.posterior(vectors)  # [B, K, Z]
            count = demo_mask.sum(1, keepdim=True).clamp(min=1)
            centre, variance = masked_mean(mu, demo_mask), masked_mean(logvar.exp(), demo_mask) / count
            kl = masked_mean(kl_divergence(mu, logvar).unsqueeze(-1), demo_mask).squeeze(-1)
        else:
            mu, logvar = self.posterior(self.aggregate(vectors, demo_mask).mean(1))  # [B, Z]
            centre, variance, kl = mu, logvar.exp(), kl_divergence(mu, logvar)
        latent = sample(centre, variance, noise) if self.training else centre
        return EncoderOutput(self.context_of(latent), kl, mu, logvar, latent, centre)

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
