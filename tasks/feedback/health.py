"""Diagnostics of an adapter's deltas: their size, how much of them depends on the input, how much they vary by row.

Shapes: B rows, L blocks.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.feedback.adapter import Adapter
from models.feedback.base import BaseLM
from models.feedback.delta import LoraDelta

SPECTRAL_ROWS = 4
"""Number of rows whose singular values are computed."""


def health_of(delta: Any, adapter: Adapter, base: BaseLM) -> tuple[dict[str, float], str]:
    """(`delta_health` and `delta_sources`; the `layer_table` of low-rank deltas, else "")."""
    layers = layer_health(delta, base) if isinstance(delta, LoraDelta) else None
    table = layer_table(layers, adapter.gates()) if layers is not None else ""
    return delta_health(delta, base, layers) | delta_sources(delta, adapter, base), table


@dataclass(frozen=True)
class LayerHealth:
    """Size of a batch's deltas in one target of one block."""

    block: int
    target: str
    ratio: float
    """‖ΔW‖_F / ‖W‖_F, mean over rows."""
    spectral: float
    """The largest ‖ΔW‖₂ / ‖W‖₂ of the first rows."""
    stable_ranks: tuple[float, ...]
    """‖ΔW‖²_F / ‖ΔW‖²₂ of the same rows, without zero deltas."""


@torch.no_grad()
def layer_health(delta: LoraDelta, base: BaseLM) -> list[LayerHealth]:
    """The `LayerHealth` of each target of each block, in the order of the delta."""
    ratios = delta.norms(base).mean(0)  # [L, targets]
    first = delta.map(lambda part: part[:SPECTRAL_ROWS])
    layers = []
    for block in range(delta.shape[1]):
        for number, target in enumerate(delta.factors):
            change = first.dense(block, target)
            size = torch.linalg.matrix_norm(change, 2)
            spectral = float((size / torch.linalg.matrix_norm(base.linear(block, target), 2)).max())
            ranks = (change.square().sum((1, 2)) / size.square())[size > 0].tolist()
            layers.append(LayerHealth(block, target, float(ratios[block, number]), spectral, tuple(ranks)))
    return layers


def layer_table(layers: Sequence[LayerHealth], gates: Tensor | None) -> str:
    """CSV with one line per target and block; `gates` [targets, L] of a gated readout."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["block", "target", "ratio", "spectral", "stable_rank", *(["gate"] if gates is not None else [])])
    places = {target: place for place, target in enumerate(dict.fromkeys(layer.target for layer in layers))}
    for one in layers:
        rank = statistics.fmean(one.stable_ranks) if one.stable_ranks else 0.0
        gate = [] if gates is None else [float(gates.detach()[places[one.target], one.block])]
        writer.writerow([one.block, one.target, *(f"{value:.6g}" for value in (one.ratio, one.spectral, rank, *gate))])
    return out.getvalue()


@torch.no_grad()
def delta_health(delta: Any, base: BaseLM, layers: Sequence[LayerHealth] | None = None) -> dict[str, float]:
    """Size of a batch's deltas and their variation between rows; `layers`: the result of `layer_health`, if known.

    `ratio_{target}` and `ratio_max`: ‖ΔW‖_F / ‖W‖_F, mean over rows and blocks, and the largest. `spectral`: the
    largest ‖ΔW‖₂ / ‖W‖₂ and `stable_rank`: the mean ‖ΔW‖²_F / ‖ΔW‖²₂, both over the first rows. `cosine`: mean cosine
    between a row's delta and the previous row's.
    """
    ratios = delta.norms(base)  # [B, L, targets]
    if not isinstance(delta, LoraDelta):
        return {"ratio_max": float(ratios.max())}
    health = {f"ratio_{target}": float(ratios[..., i].mean()) for i, target in enumerate(delta.factors)}
    health["ratio_max"] = float(ratios.max())
    layers = layer_health(delta, base) if layers is None else layers
    health["spectral"] = max(layer.spectral for layer in layers)
    ranks = [
        rank for target in delta.factors for layer in layers if layer.target == target for rank in layer.stable_ranks
    ]
    health["stable_rank"] = sum(ranks) / len(ranks) if ranks else 0.0
    if delta.shape[0] > 1:
        inner = _inner(delta, delta.roll(1))
        size = delta.squares().sum((1, 2)).sqrt()
        cosines = inner / (size * size.roll(1)).clamp(min=torch.finfo(inner.dtype).tiny)
        health["cosine"] = float(cosines.mean())
    return health


@torch.no_grad()
def delta_sources(delta: Any, adapter: Adapter, base: BaseLM) -> dict[str, float]:
    """How much of a batch's deltas depends on the input; empty if all rows share one delta.

    `dynamic`: ‖ΔW - ΔW₀‖² / (‖ΔW - ΔW₀‖² + ‖ΔW₀‖²), mean over rows, with the input-independent part ΔW₀: 0 for a
    static LoRA, 1 without such a part. `gate`: mean |γ| of a gated readout.
    """
    if not isinstance(delta, LoraDelta) or delta.shape[0] < 2:
        return {}
    static = adapter.static_delta(base)
    total, fixed = delta.squares().sum((1, 2)), static.squares().sum((1, 2))
    dynamic = (total - 2 * _inner(delta, static) + fixed).clamp(min=0)
    sources = {"dynamic": float((dynamic / (dynamic + fixed).clamp(min=torch.finfo(dynamic.dtype).tiny)).mean())}
    gates = adapter.gates()
    return sources if gates is None else {**sources, "gate": float(gates.abs().mean())}


def _inner(one: LoraDelta, other: LoraDelta) -> Tensor:
    """Inner product Σ_{blocks, targets} <ΔW, ΔW'> of each row, [B], computed from the factors."""
    total: Tensor | None = None
    for target, (a, b) in one.factors.items():
        c, d = other.factors[target]
        part = ((a @ c.transpose(-1, -2)) * (b @ d.transpose(-1, -2))).sum((1, 2, 3)) * one.scale * other.scale
        total = part if total is None else total + part
    assert total is not None
    return total
