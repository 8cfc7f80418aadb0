"""`hybrid_standard`: LPN's pair encoder, then a set transformer among the demonstrations."""

from __future__ import annotations

from typing import ClassVar

from models.encoders.base import DemoEncoder


class HybridStandard(DemoEncoder):
    """Four pre-norm layers with CLS, then self-attention among the demonstrations and their mean."""

    LAYERS: ClassVar = 4
    AGGREGATION: ClassVar = "set_transformer"
    PRE_NORM: ClassVar = True
