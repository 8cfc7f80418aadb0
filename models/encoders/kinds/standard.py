"""`standard`: a transformer over each demonstration, then the mean."""

from __future__ import annotations

from models.encoders.base import DemoEncoder


class Standard(DemoEncoder):
    """Two post-norm layers; the mean of the tokens of a pair, then of the pairs."""
