"""The one recursion engine of the family: latents by name, a plan of updates, and how many of the last carry
a gradient.

A variant is only a plan. TRM: one stack, the whole last cycle with gradient. HRM: two stacks, the last two
updates. An update reads latents and inputs from one name space, so a further input (e.g. a goal) is one more
name in a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[str, Tensor, Tensor | None], Tensor]
"""(stack name, hidden [B,S,D], injection [B,S,D] or None) -> [B,S,D]."""
Settle = Callable[[int, Tensor, Tensor], Tensor]
"""(number of the update, its latent before, what the stack made of it) -> the latent after, [B,S,D] each."""


@dataclass(frozen=True)
class Update:
    """values[target] <- stack(sum of `hidden`, sum of `injection`); the names are latents or inputs."""

    stack: str
    target: str
    hidden: tuple[str, ...]
    injection: tuple[str, ...] = ()


Depth = tuple[Sequence[Update], int]
"""The updates of one ACT step in order, and how many of the last ones carry a gradient."""


def cycle_plan(H_cycles: int, L_cycles: int, low: Update, high: Update) -> tuple[Update, ...]:
    """H_cycles times (L_cycles times `low`, then `high`)."""
    return ((low,) * L_cycles + (high,)) * H_cycles


def recur(
    plan: Sequence[Update],
    window: int,
    values: Mapping[str, Tensor],
    call: Call,
    settle: Settle | None = None,
    first: int = 0,
) -> dict[str, Tensor]:
    """Run the plan, whose updates are numbered from `first`; only its last `window` build a graph. Returns all values,
    the updated latents among them."""
    state = dict(values)
    numbered = list(enumerate(plan, first))
    split = max(0, len(plan) - window)
    with torch.no_grad():
        _run(numbered[:split], state, call, settle)
    _run(numbered[split:], state, call, settle)
    return state


def _run(plan: Sequence[tuple[int, Update]], values: dict[str, Tensor], call: Call, settle: Settle | None) -> None:
    sums: dict[tuple[str, ...], Tensor] = {}  # an injection is summed once until one of its summands changes
    for number, update in plan:
        names = update.injection
        if names and names not in sums:
            sums[names] = _sum(values, names)
        made = call(update.stack, _sum(values, update.hidden), sums.get(names))
        values[update.target] = made if settle is None else settle(number, values[update.target], made)
        sums = {names: total for names, total in sums.items() if update.target not in names}


def _sum(values: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    total = values[names[0]]
    for name in names[1:]:
        total = total + values[name]
    return total


def where_rows(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Row by row of `one` where `chosen` [B] bool, else of `other`: [B, ...]."""
    return torch.where(chosen.view(-1, *[1] * (one.dim() - 1)), one, other)
