"""What every encoder of demonstrations is: pairs encoded one by one, aggregated as a set, laid out as context tokens.

    e_i = pairs(x_i, y_i)        a = aggregate({e_i})        context = rms(output(a))

Each context token has RMS 1, whatever the encoder: `arch.context_scale` sets how large it enters the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.encoders.aggregation import AGGREGATORS
from models.encoders.pairs import PairEncoder
from models.layers import CastedLinear, rms_norm


@dataclass
class EncoderOutput:
    """The demonstrations of B rows, encoded."""

    context: Tensor
    """[B, T, D] in the compute dtype."""
    kl: Tensor | None = None
    """[B] KL divergence from N(0, I), summed over Z, the mean of a row's posteriors; of variational encoders."""
    mu: Tensor | None = None
    """[B, N, Z]: a posterior for each demonstration, or for each token that the aggregation made."""
    logvar: Tensor | None = None
    """As `mu`."""
    sigma: Tensor | None = None
    """[B] standard deviation of a row's posteriors, the mean over them and Z."""
    latent: Tensor | None = None
    """[B, Z], what the context was decoded from: a sample in training, else `centre`."""
    centre: Tensor | None = None
    """[B, Z], the mean of the latent."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """What a recurrent encoder carries to the next ACT step, without gradient, [B, ...] each."""


class DemoEncoder(nn.Module):
    """`encoder(demo_inputs [B,K,S], demo_labels [B,K,S], demo_mask [B,K])` -> EncoderOutput.

    The order of the demonstrations, and what is in masked places, changes nothing but rounding. A row without any
    has a finite context. `config` is the architecture's (hidden_size, num_heads, ...), `shape` the data's.
    """

    LAYERS: ClassVar[int] = 2
    """Blocks of the pair encoder where `arch.encoder_num_layers` is null."""
    AGGREGATION: ClassVar[str] = "mean"
    """How demonstrations become one context where `arch.aggregation` is null."""
    PRE_NORM: ClassVar[bool] = False
    """Pair encoder of LPN's kind: pre-norm blocks read out at a CLS position; else post-norm and a mean."""
    POOLED: ClassVar[bool] = True
    """Whether a demonstration is one vector for the aggregation; else it is all of its cells."""
    VARIATIONAL: ClassVar[bool] = False
    """Whether it has a latent with a prior, and so a KL term."""

    def __init__(self, config: Any, shape: Any, *, dtype: torch.dtype, attention: str) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.layers = config.encoder_num_layers or self.LAYERS
        self.aggregation = config.aggregation or self.AGGREGATION
        self.pairs = PairEncoder(
            config,
            shape,
            layers=self.layers,
            pre_norm=self.PRE_NORM,
            pooled=self.POOLED,
            dtype=dtype,
            attention=attention,
        )
        self.aggregate = AGGREGATORS[self.aggregation](config, attention)
        self.output = self._output(config.hidden_size)

    def _output(self, width: int) -> nn.Module | None:
        """From one vector to T tokens; None where the aggregation makes tokens."""
        config = self.config
        if self.aggregate.tokens == config.context_len:
            return None
        return CastedLinear(width, config.context_len * config.hidden_size)

    def forward(
        self,
        demo_inputs: Tensor,
        demo_labels: Tensor,
        demo_mask: Tensor,
        *,
        noise: Tensor | None = None,
    ) -> EncoderOutput:
        """`noise` [B, Z]: standard normal numbers for the sampling of training, of encoders that sample."""
        return EncoderOutput(self.laid_out(self.aggregated(demo_inputs, demo_labels, demo_mask)))

    def aggregated(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        """[B, 1, D], or [B, T, D] where the aggregation makes tokens."""
        if not self.POOLED:
            words: Tensor = self.aggregate(*self.pairs.words(demo_inputs, demo_labels, demo_mask))
            return words
        out: Tensor = self.aggregate(self.pairs(demo_inputs, demo_labels, demo_mask), demo_mask)
        return out

    def laid_out(self, vectors: Tensor) -> Tensor:
        """One vector [B, 1, W], or tokens [B, T, D] -> context [B, T, D] of RMS 1."""
        if self.output is not None:
            vectors = self.output(vectors.to(self.dtype)).view(len(vectors), self.config.context_len, -1)
        return rms_norm(vectors, self.config.rms_norm_eps)

    def initial(self, rows: int) -> dict[str, Tensor]:
        """The state of rows that begin an example; nothing but for recurrent encoders."""
        return {}

    def refined(self, context: Tensor, state: dict[str, Tensor]) -> EncoderOutput:
        """The context of one ACT step: what `forward` made, thought through from `state` by a recurrent encoder."""
        return EncoderOutput(context)

    @property
    def shift_shape(self) -> tuple[int, ...]:
        """Of what `moved` adds: that of a context."""
        return self.config.context_len, self.config.hidden_size

    def moved(self, encoded: EncoderOutput, shift: Tensor) -> Tensor:
        """The context after a search found `shift` [B, *shift_shape]: added to the context."""
        return encoded.context + shift.to(encoded.context.dtype)

    @property
    def noise_width(self) -> int:
        """Normal numbers that a row of training needs."""
        return 0

    def describe(self) -> str:
        """One line: layers and aggregation, and where they are not those of the table."""
        name = type(self).__module__.rpartition(".")[2]
        own = {"layers": (self.layers, self.LAYERS), "aggregation": (self.aggregation, self.AGGREGATION)}
        changed = [f"{key} {usual}" for key, (value, usual) in own.items() if value != usual]
        table = f" (the table has {', '.join(changed)})" if changed else " (as in the table)"
        return f"{name}, {self.layers} layers, aggregation {self.aggregation}{table}"
