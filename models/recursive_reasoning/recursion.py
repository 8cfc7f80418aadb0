"""The recursion shared by all models of this family: named latents, a plan of updates, and the number of final updates
that carry a gradient.

A variant is just a plan. TRM: one stack, gradient through the whole last cycle. HRM: two stacks, gradient through the
last two updates. Updates read latents and inputs by name, so another input (e.g. a goal) is one more name in a plan.
Shapes: B rows, S positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[str, Tensor, Tensor | None], Tensor]
"""(stack name, hidden [B,S,D], injection [B,S,D] or None) -> [B,S,D]."""
PostUpdate = Callable[[int, Tensor, Tensor], Tensor]
"""(update index, old latent, stack output) -> new latent, [B,S,D] each."""


@dataclass(frozen=True)
class Update:
    """values[target] <- stack(sum of `hidden`, sum of `injection`). Names refer to latents or inputs."""

    stack: str
    target: str
    hidden: tuple[str, ...]
    injection: tuple[str, ...] = ()


Depth = tuple[Sequence[Update], int]
"""(the updates of one ACT step in order, how many of the last ones carry a gradient)."""


def cycle_plan(H_cycles: int, L_cycles: int, low: Update, high: Update) -> tuple[Update, ...]:
    """Repeat H_cycles times: L_cycles times `low`, then `high`."""
    return ((low,) * L_cycles + (high,)) * H_cycles


def recur(
    plan: Sequence[Update],
    window: int,
    values: Mapping[str, Tensor],
    call: Call,
    post_update: PostUpdate | None = None,
    first: int = 0,
) -> dict[str, Tensor]:
    """Run the plan; only its last `window` updates build a graph. Updates are numbered from `first`.

    Returns `values` with the updated latents.
    """
    state = dict(values)
    numbered = list(enumerate(plan, first))
    split = max(0, len(plan) - window)
    with torch.no_grad():
        _run(numbered[:split], state, call, post_update)
    _run(numbered[split:], state, call, post_update)
    return state


def _run(
    plan: Sequence[tuple[int, Update]], values: dict[str, Tensor], call: Call, post_update: PostUpdate | None
) -> None:
    sums: dict[tuple[str, ...], Tensor] = {}  # injections, reused until one of their summands changes
    for number, update in plan:
        names = update.injection
        if names and names not in sums:
            sums[names] = _sum(values, names)
        out = call(update.stack, _sum(values, update.hidden), sums.get(names))
        values[update.target] = out if post_update is None else post_update(number, values[update.target], out)
        sums = {names: total for names, total in sums.items() if update.target not in names}


def _sum(values: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    total = values[names[0]]
    for name in names[1:]:
        total = total + values[name]
    return total


def where_rows(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of `a` [B, ...] where `mask` [B] is true, rows of `b` elsewhere."""
    return torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b)
