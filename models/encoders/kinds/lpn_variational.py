"""`lpn_variational`: the encoder of Latent Program Networks (arXiv 2411.08706), suited to search at test time."""

from __future__ import annotations

from typing import ClassVar

from models.encoders.variational import VariationalEncoder


class LPNVariational(VariationalEncoder):
    """Six pre-norm layers with CLS; one posterior per demonstration, z is the mean of their samples."""

    LAYERS: ClassVar = 6
    PRE_NORM: ClassVar = True
    PER_DEMONSTRATION: ClassVar = True
