"""What an evaluation measures beside the loss: every pass, controls, paired differences, and how large the deltas are.

Figures are (sum, count) pairs to be added over batches and ranks; `finish` makes the derived ones. NLL is the loss in
nats per token. B rows, L blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from losses.masked_diffusion import MaskedDiffusionLoss
from models.feedback.adapter import Adapter
from models.feedback.base import BaseLM
from models.feedback.batch import BaseOutput, Batch, FeedbackOutput
from models.feedback.delta import LoraDelta

BUCKETS = 5
"""Equal parts of (0, 1] by the share of hidden tokens."""
SPECTRAL_ROWS = 4
"""Rows of which singular values are taken."""

_ALL = slice(None)
Pairs = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def measure(output: BaseOutput | FeedbackOutput, batch: Batch, head: MaskedDiffusionLoss) -> Pairs:
    """`nll_pass{0..k}`, and `nll_t{0..4}` of the last pass by the share of hidden tokens.

    For an adapted base also `base_accuracy` on hidden tokens, and `delta_nll` with `delta_nll_sq`: a row's mean NLL
    less that of the base, and its square, over the rows with text.
    """
    passes = (output,) if isinstance(output, BaseOutput) else output.passes
    rows = [head.rows(each, batch) for each in passes]
    weight = batch.count.sum()
    pairs: Pairs = {f"nll_pass{number}": (sums.sum(), weight) for number, sums in enumerate(rows)}
    bucket = (batch.rate * BUCKETS).ceil().clamp(1, BUCKETS) - 1
    for number in range(BUCKETS):
        inside = bucket == number
        pairs[f"nll_t{number}"] = (rows[-1][inside].sum(), batch.count[inside].sum())
    if len(rows) > 1:
        text = batch.count > 0
        paired = ((rows[-1] - rows[0]) / batch.count.clamp(min=1))[text]
        pairs["delta_nll"] = (paired.sum(), text.sum())
        pairs["delta_nll_sq"] = (paired.square().sum(), text.sum())
        pairs["base_accuracy"] = head.hits(passes[0], batch)
    return pairs


@torch.no_grad()
def controls(
    output: FeedbackOutput,
    batch: Batch,
    head: MaskedDiffusionLoss,
    *,
    base: BaseLM,
    adapter: Adapter,
    others: Tensor | None = None,
    rows: slice = _ALL,
) -> Pairs:
    """NLL of some `rows` of the batch under other deltas than a row's own.

    `shuffled_nll`: that of row `others[i]` (int64 [B]; None: of the row before it); `mean_nll`: the batch's mean
    factors; `static_nll`: the input-independent part; `zero_nll`: none, which is the base itself. `..._accuracy`
    likewise.

    Shuffled and mean depend on which rows share a batch. Empty where all rows share one delta.
    """
    delta = output.deltas[-1] if output.deltas else None
    if not isinstance(delta, LoraDelta) or delta.shape[0] < 2:
        return {}
    deltas = {
        "shuffled": delta.roll(1) if others is None else delta.each(lambda part: part[others]),
        "mean": delta.mean(),
        "static": adapter.static_delta(base),
        "zero": delta.zeros_like(),
    }
    pairs: Pairs = {}
    for name, other in deltas.items():
        made = base(batch.inputs, batch.real, other)
        made, asked = replace(made, hidden=made.hidden[rows]), batch.rows(rows)
        pairs[f"{name}_nll"] = (head.rows(made, asked).sum(), asked.count.sum())
        pairs[f"{name}_accuracy"] = head.hits(made, asked)
    return pairs


def finish(means: Mapping[str, float | None], counts: Mapping[str, float]) -> dict[str, float]:
    """The figures that follow from means and counts of all batches.

    `delta_nll_se`: standard error of the paired difference. `input_dependence`: how much worse a row fares with another
    row's delta; 0 means a costly static LoRA.
    """
    known = {name: value for name, value in means.items() if value is not None}
    derived: dict[str, float] = {}
    rows = counts.get("delta_nll", 0.0)
    if "delta_nll" in known and "delta_nll_sq" in known and rows > 1:
        variance = max(known["delta_nll_sq"] - known["delta_nll"] ** 2, 0.0) * rows / (rows - 1)
        derived["delta_nll_se"] = math.sqrt(variance / rows)
    last = max((name for name in known if name.startswith("nll_pass")), key=lambda name: int(name[8:]), default=None)
    if last is not None and "shuffled_nll" in known:
        derived["input_dependence"] = known["shuffled_nll"] - known[last]
    return derived


@torch.no_grad()
def delta_health(delta: Any, base: BaseLM) -> dict[str, float]:
    """How large the changes of a batch are, and how different from row to row.

    `ratio_{target}` and `ratio_max`: ‖ΔW‖_F / ‖W‖_F, mean over rows and blocks, and the largest. `spectral`: the
    largest ‖ΔW‖₂ / ‖W‖₂ and `stable_rank`: the mean ‖ΔW‖²_F / ‖ΔW‖²₂, both over the first rows. `cosine`: mean cosine
    of a row's changes with those of the row before it.
    """
    ratios = delta.norms(base)  # [B, L, targets]
    if not isinstance(delta, LoraDelta):
        return {"ratio_max": float(ratios.max())}
    health = {f"ratio_{target}": float(ratios[..., i].mean()) for i, target in enumerate(delta.factors)}
    health["ratio_max"] = float(ratios.max())
    spectral, ranks = [0.0], []
    some = delta.each(lambda part: part[:SPECTRAL_ROWS])
    for target in delta.factors:
        for number in range(delta.shape[1]):
            change = some.dense(number, target)
            size = torch.linalg.matrix_norm(change, 2)
            spectral.append(float((size / torch.linalg.matrix_norm(base.linear(number, target), 2)).max()))
            squares = change.square().sum((1, 2))
            ranks += (squares / size.square())[size > 0].tolist()
    health["spectral"] = max(spectral)
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
