"""`hybrid_variational`: LPN's pair encoder, cross-attention over the demonstrations, one latent for the task."""

from __future__ import annotations

from typing import ClassVar

from models.encoders.variational import VariationalEncoder


class HybridVariational(VariationalEncoder):
    """Four pre-norm layers with CLS; one posterior per cross-attention token, z is the mean of their samples."""

    LAYERS: ClassVar = 4
    AGGREGATION: ClassVar = "cross_attention"
    PRE_NORM: ClassVar = True
