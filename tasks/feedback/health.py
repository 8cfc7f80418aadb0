"""How large the changes of an adapter are, where they come from, and how much they differ from row to row.

B rows, L blocks.
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
"""Rows of which singular values are taken."""


def health_of(delta: Any, adapter: Adapter, base: BaseLM) -> tuple[dict[str, float], str]:
    """(`delta_health` and `delta_sources`; of low-rank changes the `layer_table`, else "")."""
    layers = layer_health(delta, base) if isinstance(delta, LoraDelta) else None
    table = layer_table(layers, adapter.gates()) if layers is not None else ""
    return delta_health(delta, base, layers) | delta_sources(delta, adapter, base), table


@dataclass(frozen=True)
class LayerHealth:
    """How large the changes of a batch are in one target of one block."""

    block: int
    target: str
    ratio: float
    """‖ΔW‖_F / ‖W‖_F, mean over rows."""
    spectral: float
    """The largest ‖ΔW‖₂ / ‖W‖₂ of the first rows."""
    stable_ranks: tuple[float, ...]
    """‖ΔW‖²_F / ‖ΔW‖²₂ of the same rows, where there is a change."""


@torch.no_grad()
def layer_health(delta: LoraDelta, base: BaseLM) -> list[LayerHealth]:
    """Block by block; the targets in the order of the delta."""
    ratios = delta.norms(base).mean(0)  # [L, targets]
    some = delta.map(lambda part: part[:SPECTRAL_ROWS])
    layers = []
    for block in range(delta.shape[1]):
        for number, target in enumerate(delta.factors):
            change = some.dense(block, target)
            size = torch.linalg.matrix_norm(change, 2)
            spectral = float((size / torch.linalg.matrix_norm(base.linear(block, target), 2)).max())
            ranks = (change.square().sum((1, 2)) / size.square())[size > 0].tolist()
            layers.append(LayerHealth(block, target, float(ratios[block, number]), spectral, tuple(ranks)))
    return layers


def layer_table(layers: Sequence[LayerHealth], gates: Tensor | None) -> str:
    """A CSV of one line for each target of each block; `gates` [targets, L] of a gated readout."""
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
    """How large the changes of a batch are, and how different from row to row; `layers` where they are known.

    `ratio_{target}` and `ratio_max`: ‖ΔW‖_F / ‖W‖_F, mean over rows and blocks, and the largest. `spectral`: the
    largest ‖ΔW‖₂ / ‖W‖₂ and `stable_rank`: the mean ‖ΔW‖²_F / ‖ΔW‖²₂, both over the first rows. `cosine`: mean cosine
    of a row's changes with those of the row before it.
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
    """Where the changes of a batch come from; nothing where all rows share one.

    `dynamic`: ‖ΔW - ΔW₀‖² / (‖ΔW - ΔW₀‖² + ‖ΔW₀‖²), mean over rows, with ΔW₀ of the input-independent part: 0 for a
    static LoRA, 1 where there is no such part. `gate`: mean |γ| of a gated readout.
    """
    if not isinstance(delta, LoraDelta) or delta.shape[0] < 2:
        return {}
    static = adapter.static_delta(base)
    whole, kept = delta.squares().sum((1, 2)), static.squares().sum((1, 2))
    moved = (whole - 2 * _inner(delta, static) + kept).clamp(min=0)
    sources = {"dynamic": float((moved / (moved + kept).clamp(min=torch.finfo(moved.dtype).tiny)).mean())}
    gates = adapter.gates()
    return sources if gates is None else {**sources, "gate": float(gates.abs().mean())}


def _inner(one: LoraDelta, other: LoraDelta) -> Tensor:
    """Σ_{blocks, targets} <ΔW, ΔW'> of each row, [B], from the factors."""
    total: Tensor | None = None
    for target, (a, b) in one.factors.items():
        c, d = other.factors[target]
        part = ((a @ c.transpose(-1, -2)) * (b @ d.transpose(-1, -2))).sum((1, 2, 3)) * one.scale * other.scale
        total = part if total is None else total + part
    assert total is not None
    return total
