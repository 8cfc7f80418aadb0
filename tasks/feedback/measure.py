"""Metrics of an evaluation besides the loss: the NLL of every pass, controls, paired differences.

Metrics are (sum, count) pairs to be added over batches and ranks; `finish` computes the derived ones. NLL is the loss
in nats per token. Shapes: B rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from losses.masked_diffusion import MaskedDiffusionLoss
from models.feedback.adapter import Adapter
from models.feedback.base import BaseLM
from models.feedback.batch import BaseOutput, Batch, FeedbackOutput
from models.feedback.delta import LoraDelta

BUCKETS = 5
"""Number of equal intervals of (0, 1] for the share of masked tokens."""

_ALL = slice(None)
Pairs = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def measure(output: BaseOutput | FeedbackOutput, batch: Batch, head: MaskedDiffusionLoss) -> Pairs:
    """`nll_pass{0..k}`, and `nll_t{0..4}` of the last pass by the share of masked tokens.

    For an adapted base also `base_accuracy` on masked tokens, and `delta_nll` with `delta_nll_sq`: a row's mean NLL
    minus the base's, and its square, over rows with text.
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
    """NLL of `rows` of the batch with deltas other than their own.

    `shuffled_nll`: the delta of row `others[i]` (int64 [B]; None: of the previous row); `mean_nll`: the batch's mean
    factors; `static_nll`: the input-independent part; `zero_nll`: no delta, i.e. the base. `..._accuracy` likewise.

    Shuffled and mean depend on which rows share a batch. Empty if all rows share one delta.
    """
    delta = output.deltas[-1] if output.deltas else None
    if not isinstance(delta, LoraDelta) or delta.shape[0] < 2:
        return {}
    deltas = {
        "shuffled": delta.roll(1) if others is None else delta.map(lambda part: part[others]),
        "mean": delta.mean(),
        "static": adapter.static_delta(base),
        "zero": delta.zeros_like(),
    }
    pairs: Pairs = {}
    for name, other in deltas.items():
        full = base(batch.inputs, batch.real, other)
        selected, scored = replace(full, hidden=full.hidden[rows]), batch.rows(rows)
        pairs[f"{name}_nll"] = (head.rows(selected, scored).sum(), scored.count.sum())
        pairs[f"{name}_accuracy"] = head.hits(selected, scored)
    return pairs


def finish(means: Mapping[str, float | None], counts: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics derived from means and counts over all batches.

    `delta_nll_se`: standard error of the paired difference. `input_dependence`: NLL with another row's delta minus that
    with its own; at 0 the adapter is a costly static LoRA. `gap_closed`: (base - adapted) / (base - in-domain base), in
    losses under the same masks; None if the in-domain base is no better than the base.
    """
    known = {name: value for name, value in means.items() if value is not None}
    derived: dict[str, float | None] = {}
    rows = counts.get("delta_nll", 0.0)
    if "delta_nll" in known and "delta_nll_sq" in known and rows > 1:
        variance = max(known["delta_nll_sq"] - known["delta_nll"] ** 2, 0.0) * rows / (rows - 1)
        derived["delta_nll_se"] = math.sqrt(variance / rows)
    last = max((name for name in known if name.startswith("nll_pass")), key=lambda name: int(name[8:]), default=None)
    if last is not None and "shuffled_nll" in known:
        derived["input_dependence"] = known["shuffled_nll"] - known[last]
    if "indomain_loss" in known:
        gap = known["base_loss"] - known["indomain_loss"]
        derived["gap_closed"] = (known["base_loss"] - known["loss"]) / gap if gap > 0 else None
    return derived
