"""Winner-take-all: several chains of one ACT step for each row, of which one is kept.

    chain k:  z_L ~ TruncN(0, 1), drawn anew at every ACT step;  z_H that of the row;  then all updates of the plan
    the row:  z_L, z_H <- those of the chain with the least cross entropy in training, with the largest q_halt else

A gradient is needed of the winner only: all chains run without one, then the winner's last `window` updates are run
again with it. B rows, K chains, T tokens; the chains of a row are K rows one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.recursive_reasoning.noise import NOISE_KEY, spread_keys


def recur_chains(inner: Any, values: Mapping[str, Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
    """One ACT step of `inner` (a RecursiveInner) on `values` [B, ...], chosen by `labels` [B, T] where they are given.

    Returns the values after it; NOISE_KEY is that of the row, as it was given.
    """
    count, split, trained = inner.chains, len(inner.plan) - inner.window, torch.is_grad_enabled()
    keys = spread_keys(values[NOISE_KEY], count)
    low = [name for name in inner.latent_names if name != inner.readout]
    with torch.no_grad():
        wide = {name: rows.repeat_interleave(count, dim=0) for name, rows in values.items() if name not in low}
        begun = inner.updated({**wide, **inner.drawn(keys, low), NOISE_KEY: keys}, end=split)
        ended = inner.updated(begun, first=split)
        best = _scores(inner, ended, labels).view(-1, count).argmax(dim=1)
        rows = best + count * torch.arange(len(best), device=best.device)
        kept = (*inner.latent_names, NOISE_KEY)
        after = {name: (begun if trained else ended)[name][rows] for name in kept}
    if trained:
        after = inner.updated({**values, **after}, first=split)
    return {**values, **after, NOISE_KEY: values[NOISE_KEY]}


def _scores(inner: Any, ended: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
    """How good each chain is, [B * K]: minus its cross entropy summed over the cells, or its q_halt."""
    if labels is None:
        q_halt: Tensor = inner.q_values(ended)[0]
        return q_halt
    logits = inner.logits(ended)
    targets = labels.long().repeat_interleave(len(logits) // len(labels), dim=0)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(dim=-1)
