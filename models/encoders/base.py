"""Base class of the demonstration encoders: encode each pair, aggregate them as a set, project to context tokens.

    e_i = pairs(x_i, y_i)        a = aggregate({e_i})        context = rms(output(a))

Context tokens of every encoder have RMS 1; `arch.context_scale` sets their scale in the decoder.
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
    """The encoded demonstrations of B rows."""

    context: Tensor
    """[B, T, D] in the compute dtype."""
    kl: Tensor | None = None
    """[B] KL divergence from N(0, I), summed over Z, mean over a row's posteriors; variational encoders only."""
    mu: Tensor | None = None
    """[B, N, Z] means of the posteriors, one per demonstration or per token of the aggregation."""
    logvar: Tensor | None = None
    """As `mu`."""
    sigma: Tensor | None = None
    """[B] standard deviation of a row's posteriors, averaged over them and Z."""
    latent: Tensor | None = None
    """[B, Z] latent that the context was decoded from: a sample in training, else `centre`."""
    centre: Tensor | None = None
    """[B, Z] mean of the latent."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """State [B, ...] that a recurrent encoder carries to the next ACT step, detached."""


class DemoEncoder(nn.Module):
    """`encoder(demo_inputs [B,K,S], demo_labels [B,K,S], demo_mask [B,K])` -> EncoderOutput.

    The order of the demonstrations and the content of masked slots change nothing but rounding. Rows without
    demonstrations get a finite context. `config` is that of the architecture (hidden_size, num_heads, ...), `shape`
    that of the data.
    """

    LAYERS: ClassVar[int] = 2
    """Blocks of the pair encoder if `arch.encoder_num_layers` is null."""
    AGGREGATION: ClassVar[str] = "mean"
    """Aggregation of the demonstrations if `arch.aggregation` is null."""
    PRE_NORM: ClassVar[bool] = False
    """Pair encoder as in LPN: pre-norm blocks with a CLS token; false: post-norm blocks with mean pooling."""
    POOLED: ClassVar[bool] = True
    """Pool each demonstration to one vector before the aggregation; false: aggregate over all cells."""
    VARIATIONAL: ClassVar[bool] = False
    """Whether there is a latent with a prior, and so a KL term."""

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
        """Projection from one vector to T tokens; None if the aggregation already outputs tokens."""
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
        """Encode demonstrations. `noise` [B, Z]: standard normal numbers from which variational encoders sample in
        training."""
        return EncoderOutput(self.to_context(self.encode_pairs(demo_inputs, demo_labels, demo_mask)))

    def encode_pairs(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        """Encode each pair and aggregate: [B, 1, D], or [B, T, D] if the aggregation outputs tokens."""
        if not self.POOLED:
            tokens: Tensor = self.aggregate(*self.pairs.tokens(demo_inputs, demo_labels, demo_mask))
            return tokens
        out: Tensor = self.aggregate(self.pairs(demo_inputs, demo_labels, demo_mask), demo_mask)
        return out

    def to_context(self, vectors: Tensor) -> Tensor:
        """One vector [B, 1, W] or tokens [B, T, D] -> context [B, T, D] of RMS 1."""
        if self.output is not None:
            vectors = self.output(vectors.to(self.dtype)).view(len(vectors), self.config.context_len, -1)
        return rms_norm(vectors, self.config.rms_norm_eps)

    def initial(self, rows: int) -> dict[str, Tensor]:
        """Initial state of a recurrent encoder; {} for all others."""
        return {}

    def refine(self, context: Tensor, state: dict[str, Tensor]) -> EncoderOutput:
        """The context of one ACT step: that of `forward`, which a recurrent encoder refines from `state`."""
        return EncoderOutput(context)

    @property
    def shift_shape(self) -> tuple[int, ...]:
        """Shape of the shift of `apply_shift`: that of a context."""
        return self.config.context_len, self.config.hidden_size

    def apply_shift(self, encoded: EncoderOutput, shift: Tensor) -> Tensor:
        """The context with `shift` [B, *shift_shape], the result of a search, added to it."""
        return encoded.context + shift.to(encoded.context.dtype)

    @property
    def noise_width(self) -> int:
        """Standard normal numbers per training row."""
        return 0

    def describe(self) -> str:
        """One line: layers and aggregation, and which differ from the table of docs/etrm.md."""
        name = type(self).__module__.rpartition(".")[2]
        own = {"layers": (self.layers, self.LAYERS), "aggregation": (self.aggregation, self.AGGREGATION)}
        changed = [f"{key} {usual}" for key, (value, usual) in own.items() if value != usual]
        table = f" (the table has {', '.join(changed)})" if changed else " (as in the table)"
        return f"{name}, {self.layers} layers, aggregation {self.aggregation}{table}"
