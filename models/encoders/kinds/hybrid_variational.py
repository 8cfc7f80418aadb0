"""`hybrid_variational`: LPN's pair encoder, cross-attention over the demonstrations, one latent for the task."""

from __future__ import annotations

from typing import ClassVar

from models.encoders.variational import VariationalEncoder


class HybridVariational(VariationalEncoder):
    """Four pre-norm layers with CLS; the posterior is that of the mean of the attended tokens."""

    LAYERS: ClassVar = 4
    AGGREGATION: ClassVar = "cross_attention"
    PRE_NORM: ClassVar = True
