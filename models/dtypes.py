"""The compute dtype of a model. Importing this needs no torch, so that --help can read the configs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

ForwardDtype = Literal["auto", "bfloat16", "float16", "float32", "float64"]


def compute_dtype(name: ForwardDtype, auto: torch.dtype) -> torch.dtype:
    """Dtype of the activations; `auto` if forward_dtype=auto."""
    import torch

    return auto if name == "auto" else getattr(torch, name)
