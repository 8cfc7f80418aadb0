"""`perceiver`: the context attends to the cells of all demonstrations (Jaegle et al. 2021, arXiv 2103.03206)."""

from __future__ import annotations

from typing import ClassVar

from models.encoders.base import DemoEncoder


class Perceiver(DemoEncoder):
    """Two post-norm layers over each demonstration; then every context token attends to all cells, without pooling."""

    AGGREGATION: ClassVar = "cross_attention"
    POOLED: ClassVar = False
