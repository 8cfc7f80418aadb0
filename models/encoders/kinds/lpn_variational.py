"""`lpn_variational`: the encoder of Latent Program Networks (arXiv 2411.08706), made for search at test time."""

from __future__ import annotations

from typing import ClassVar

from models.encoders.variational import VariationalEncoder


class LPNVariational(VariationalEncoder):
    """Six pre-norm layers with CLS; a posterior for each demonstration, z the mean of their samples."""

    LAYERS: ClassVar = 6
    PRE_NORM: ClassVar = True
    PER_DEMONSTRATION: ClassVar = True
