"""Halting metrics as (sum, count) pairs: when rows halt, and which share of the offered examples they take."""

from __future__ import annotations

import torch

from engine.task import Metrics
from losses.stablemax import IGNORE
from models.recursive_reasoning.act import ACTCarry


@torch.no_grad()
def halting_shares(carry: ACTCarry, most: int) -> Metrics:
    """`halted_step_01` to `halted_step_{most}`: the share of the rows that just halted after this many ACT steps.

    Rows without labels do not count, as in `steps`, which is the mean of this distribution.
    """
    done = carry.halted & (carry.data["labels"] != IGNORE).any(-1)  # [B]
    numbers = torch.arange(1, most + 1, device=done.device)
    counts = ((carry.steps.unsqueeze(-1) == numbers) & done.unsqueeze(-1)).sum(0)  # [most]
    return {f"halted_step_{number:02d}": (count, done.sum()) for number, count in enumerate(counts.unbind(), start=1)}


@torch.no_grad()
def offer_shares(before: ACTCarry | None, now: ACTCarry) -> Metrics:
    """`fresh`: share of rows that started the example they were offered (those halted in the carry `before` the step);
    `discarded`: share that continued their own, so that the offered one was dropped."""
    rows = torch.full((), len(now.halted), device=now.halted.device)
    fresh = rows if before is None else before.halted.sum()
    return {"fresh": (fresh, rows), "discarded": (rows - fresh, rows)}
