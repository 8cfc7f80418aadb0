"""`lpn_standard`: the encoder of Latent Program Networks (arXiv 2411.08706) without its latent distribution."""

from __future__ import annotations

from typing import ClassVar

from models.encoders.base import DemoEncoder


class LPNStandard(DemoEncoder):
    """Six pre-norm layers with CLS, then the mean of the demonstrations."""

    LAYERS: ClassVar = 6
    PRE_NORM: ClassVar = True
