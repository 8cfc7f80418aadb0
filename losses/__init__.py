"""Loss heads and loss functions; `losses@ACTLossHead` in a config names what this package exports.

torch is imported lazily, on first access, so that --help can read config.py without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from losses.config import ACTLossConfig, FeudalLossConfig, LMLossConfig

if TYPE_CHECKING:
    from losses.act import ACTLossHead, LossResult
    from losses.feudal import FeudalLossHead
    from losses.language_model import LMLossHead, LMLossResult
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
_MODULES = ("act", "feudal", "language_model", "stablemax")


def __getattr__(name: str) -> Any:
    """Import an exported name lazily from its module."""
    modules = (importlib.import_module(f"losses.{module}") for module in _MODULES if name in __all__)
    for module in modules:
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module 'losses' has no attribute {name!r}")
