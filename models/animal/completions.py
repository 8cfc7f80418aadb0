"""Completions of one prompt as tensors. B rows, T tokens, F further concepts."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

NONE = -1
"""No option, or no cluster."""
BY_TOKEN = ("ids", "mask", "concept", "open", "further")
"""Fields whose last axis is T."""


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Sampled completions, and which tokens belong to which block."""

    ids: Tensor
    """int64 [B, T], padded on the right."""
    mask: Tensor
    """bool [B, T]: sampled tokens, including the token that ended the text."""
    concept: Tensor
    """bool [B, T]: tokens that name the concept, in valid rows."""
    open: Tensor
    """bool [B, T]: tokens of the open block, in valid rows."""
    option: Tensor
    """int64 [B]: index of the option that a valid row names; -1 in other rows."""
    cluster: Tensor
    """int64 [B]: cluster of the open block within its option; -1 if there is none."""
    further: Tensor
    """bool [B, F, T]: tokens that name each further concept, in valid rows."""
    further_option: Tensor
    """int64 [B, F]: index of its option; -1 in rows that are not valid."""

    @property
    def valid(self) -> Tensor:
        """bool [B]: rows that name an option."""
        return self.option >= 0

    def rows(self, index: slice | Tensor) -> Completions:
        """Select rows."""
        return Completions(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def concat(self, other: Completions) -> Completions:
        """Concatenate the rows of both, padded to the longer length."""
        length = max(self.ids.shape[1], other.ids.shape[1])

        def padded(of: Completions, name: str) -> Tensor:
            tensor: Tensor = getattr(of, name)
            missing = length - of.ids.shape[1] if name in BY_TOKEN else 0
            return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor

        names = (field.name for field in fields(self))
        return Completions(**{name: torch.cat((padded(self, name), padded(other, name))) for name in names})

    def to(self, device: torch.device) -> Completions:
        """Copy to another device."""
        return Completions(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})
