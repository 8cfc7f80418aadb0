"""Winner-take-all over several chains per row: each ACT step runs all of them and keeps one.

    chain k:  z_L ~ TruncN(0, 1), redrawn at every ACT step;  z_H of the row;  then all updates of the plan
    the row:  z_L, z_H <- those of the chain of lowest cross-entropy (training) or largest q_halt (evaluation)

Only the winner needs a gradient, so all chains run without one, and the last `window` updates of the winner are run
again with it. B rows, K chains, T tokens; the K chains of a row are adjacent rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.recursive_reasoning.noise import NOISE_KEY, spread_keys


def recur_chains(inner: Any, values: Mapping[str, Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
    """One ACT step of `inner` (a RecursiveInner) on `values` [B, ...]; `labels` [B, T], if given, choose the winner.

    Returns the values of the winner with the NOISE_KEY of the row unchanged.
    """
    count, split, training = inner.chains, len(inner.plan) - inner.window, torch.is_grad_enabled()
    keys = spread_keys(values[NOISE_KEY], count)
    low = [name for name in inner.latent_names if name != inner.readout]
    with torch.no_grad():
        wide = {name: rows.repeat_interleave(count, dim=0) for name, rows in values.items() if name not in low}
        at_window = inner.run_plan({**wide, **inner.random_latents(keys, low), NOISE_KEY: keys}, end=split)
        final = inner.run_plan(at_window, first=split)
        best = _scores(inner, final, labels).view(-1, count).argmax(dim=1)
        rows = best + count * torch.arange(len(best), device=best.device)
        kept = (*inner.latent_names, NOISE_KEY)
        winner = {name: (at_window if training else final)[name][rows] for name in kept}
    if training:
        winner = inner.run_plan({**values, **winner}, first=split)
    return {**values, **winner, NOISE_KEY: values[NOISE_KEY]}


def _scores(inner: Any, final: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
    """Score of each chain, [B * K]: its negative cross-entropy summed over the tokens, or its q_halt."""
    if labels is None:
        q_halt: Tensor = inner.q_values(final)[0]
        return q_halt
    logits = inner.logits(final)
    targets = labels.long().repeat_interleave(len(logits) // len(labels), dim=0)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(dim=-1)
