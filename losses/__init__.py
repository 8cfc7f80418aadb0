"""Loss heads and loss functions; `losses@ACTLossHead` in a config names what this package exports."""

from __future__ import annotations

from losses.act import ACTLossConfig, ACTLossHead, LossResult
from losses.feudal import FeudalLossConfig, FeudalLossHead
from losses.language_model import LMLossConfig, LMLossHead, LMLossResult
from losses.stablemax import softmax_cross_entropy, stablemax_cross_entropy

__all__ = [
    "ACTLossConfig",
    "ACTLossHead",
    "FeudalLossConfig",
    "FeudalLossHead",
    "LMLossConfig",
    "LMLossHead",
    "LMLossResult",
    "LossResult",
    "softmax_cross_entropy",
    "stablemax_cross_entropy",
]
