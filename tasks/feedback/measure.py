"""What an evaluation measures beside the loss: every pass, controls, paired differences.

Figures are (sum, count) pairs to be added over batches and ranks; `finish` makes the derived ones. NLL is the loss in
nats per token. B rows.
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
"""Equal parts of (0, 1] by the share of hidden tokens."""

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
        "shuffled": delta.roll(1) if others is None else delta.map(lambda part: part[others]),
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


def finish(means: Mapping[str, float | None], counts: Mapping[str, float]) -> dict[str, float | None]:
    """The figures that follow from means and counts of all batches.

    `delta_nll_se`: standard error of the paired difference. `input_dependence`: how much worse a row fares with another
    row's delta; 0 means a costly static LoRA. `gap_closed`: (base - adapted) / (base - in-domain base), in losses under
    the same masks; None where the in-domain base is no better than the base, so that there is no gap.
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
