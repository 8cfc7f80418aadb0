"""Demonstration encoders: from the input-output pairs of a task to T context tokens that replace a task embedding.

Shape legend: B rows, K demonstrations of a row, S cells of a grid, N pairs that exist, L positions of a pair, D width,
T context tokens, Z latent dimensions. To add an encoder, add one file to kinds/.
"""

from __future__ import annotations

from models.encoders.base import DemoEncoder, EncoderOutput
from models.encoders.registry import encoder_class, encoder_types
from models.encoders.variational import VariationalEncoder

__all__ = ["DemoEncoder", "EncoderOutput", "VariationalEncoder", "encoder_class", "encoder_types"]
