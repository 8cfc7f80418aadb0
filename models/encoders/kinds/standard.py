"""`standard`: a transformer over each demonstration, then the mean."""

from __future__ import annotations

from models.encoders.base import DemoEncoder


class Standard(DemoEncoder):
    """Two post-norm layers; mean over the tokens of a pair, then over the pairs."""
