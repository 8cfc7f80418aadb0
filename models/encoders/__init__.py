"""Encoders of demonstrations: the pairs of a task in, a context of T tokens out, in place of a learned task embedding.

Shape legend: B rows, K demonstrations of a row, S cells of a grid, N pairs that exist, L positions of a pair, D width,
T context tokens, Z latent numbers. A further encoder is one file in kinds/.
"""

from __future__ import annotations

from models.encoders.base import DemoEncoder, EncoderOutput
from models.encoders.registry import encoder_class, encoder_types
from models.encoders.variational import VariationalEncoder

__all__ = ["DemoEncoder", "EncoderOutput", "VariationalEncoder", "encoder_class", "encoder_types"]
