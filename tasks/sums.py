"""Sums of an evaluation's metrics over its batches: a tensor [sum, count] for each name."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.task import Metrics


def sum_dtype(device: torch.device) -> torch.dtype:
    """float64, so that a long evaluation loses nothing; float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def add_metrics(sums: dict[str, Tensor], metrics: Metrics) -> None:
    """Add the (sum, count) pairs of one batch to `sums`."""
    for name, pair in metrics.items():
        values = torch.stack([part.detach().to(sum_dtype(part.device)) for part in pair])
        sums[name] = sums[name] + values if name in sums else values


def mean_of(pair: Tensor) -> float | None:
    """The mean that a sum and its count [2] stand for; None if the count is 0."""
    total, count = pair.tolist()
    return total / count if count else None
