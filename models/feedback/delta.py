"""Low-rank changes of the blocks of a base, per row, as one object with checked shapes.

B rows (1: shared by all), L blocks, r rank. The linear layer of a target, n to m channels, becomes W + scale · Bᵀ A
with A [r, n], B [r, m].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.feedback.adapter_config import TARGETS
from models.feedback.apply import FORMS, Form, choose_form
from models.feedback.config import BaseConfig
from models.feedback.layers import Changes
from models.layers import CastedLinear

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LowRankChange:
    """The change of one target in one block: a [B, r, n], b [B, r, m]."""

    a: Tensor
    b: Tensor
    scale: float
    form: Form

    def __call__(self, linear: CastedLinear, x: Tensor) -> Tensor:
        rank, n = self.a.shape[-2:]
        sides = (n, self.b.shape[-1])
        form = choose_form(self.form, x.shape[0], x.shape[1], rank, sides, x.dtype, x.device.type)
        if form == "dense" and self.form == "auto" and not self.b.any():
            form = "lowrank"  # a zero delta must leave the base bit-identical
        return FORMS[form](linear, x, self.a, self.b, self.scale)


@dataclass(frozen=True)
class LoraDelta:
    """Factors {target: (A [B, L, r, n], B [B, L, r, m])} and the scale of their products.

    Raises: ValueError if the factors disagree in B, L or r, or a target is unknown.
    """

    factors: dict[str, Pair]
    scale: float = 1.0
    form: Form = "lowrank"

    def __post_init__(self) -> None:
        if not self.factors or self.factors.keys() - set(TARGETS):
            raise ValueError(f"targets {sorted(self.factors)}: expected some of {', '.join(TARGETS)}")
        shapes = {part.shape[:-1] for pair in self.factors.values() for part in pair}
        if len(shapes) > 1 or len(next(iter(shapes))) != 3:
            raise ValueError(f"factors disagree in (rows, blocks, rank): {sorted(map(tuple, shapes))}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, L, r)."""
        rows, blocks, rank = next(iter(self.factors.values()))[0].shape[:-1]
        return rows, blocks, rank

    def check(self, config: BaseConfig, rows: int) -> None:
        """Raises: ValueError with both values if blocks, widths or rows do not fit the base and the batch."""
        own_rows, blocks, _ = self.shape
        if blocks != config.n_layer:
            raise ValueError(f"the delta is for {blocks} blocks, the base has n_layer={config.n_layer}")
        if own_rows not in (1, rows):
            raise ValueError(f"the delta is for {own_rows} rows, the batch has {rows}")
        for target, (a, b) in self.factors.items():
            sides = a.shape[-1], b.shape[-1]
            if sides != config.sides(target):
                raise ValueError(
                    f"the delta's {target} maps {sides[0]} to {sides[1]} numbers, that of the base maps "
                    f"{config.sides(target)[0]} to {config.sides(target)[1]} (n_embd={config.n_embd})"
                )

    def layer(self, number: int) -> Changes:
        """The changes of block `number`."""
        return {
            target: LowRankChange(a[:, number], b[:, number], self.scale, self.form)
            for target, (a, b) in self.factors.items()
        }

    def map(self, function: Callable[[Tensor], Tensor]) -> LoraDelta:
        """Apply `function` to every factor."""
        return replace(self, factors={name: (function(a), function(b)) for name, (a, b) in self.factors.items()})

    def plus(self, other: LoraDelta) -> LoraDelta:
        """Sum of two deltas of the same rows, by concatenating their factors: the ranks add up.

        Raises: ValueError if scale or targets differ.
        """
        if self.scale != other.scale or self.factors.keys() != other.factors.keys():
            raise ValueError(
                f"deltas of {', '.join(self.factors)} (scale {self.scale:g}) and of {', '.join(other.factors)} (scale "
                f"{other.scale:g}) do not add up"
            )
        factors = {
            name: (torch.cat((a, other.factors[name][0]), -2), torch.cat((b, other.factors[name][1]), -2))
            for name, (a, b) in self.factors.items()
        }
        return replace(self, factors=factors)

    def roll(self, by: int) -> LoraDelta:
        """Give row i the delta of row i - by: the shuffled-condition control."""
        return self.map(lambda part: part.roll(by, dims=0))

    def mean(self) -> LoraDelta:
        """One delta for all rows, from the mean factors: the mean-delta control."""
        return self.map(lambda part: part.mean(0, keepdim=True))

    def zeros_like(self) -> LoraDelta:
        """A zero delta of the same shape."""
        return self.map(torch.zeros_like)

    def detach(self) -> LoraDelta:
        """A detached copy."""
        return self.map(Tensor.detach)

    def dense(self, number: int, target: str) -> Tensor:
        """The change ΔW [B, m, n] of one linear layer, in at least float32."""
        a, b = (part[:, number] for part in self.factors[target])
        wide = torch.promote_types(a.dtype, torch.float32)
        return self.scale * b.to(wide).transpose(1, 2) @ a.to(wide)

    def squares(self) -> Tensor:
        """‖ΔW‖²_F of each row, block and target: [B, L, targets], as tr((A Aᵀ)(B Bᵀ)) without forming ΔW."""
        parts = []
        for a, b in self.factors.values():
            wide = torch.promote_types(a.dtype, torch.float32)
            a, b = a.to(wide), b.to(wide)
            inner = (a @ a.transpose(-1, -2)) * (b @ b.transpose(-1, -2))
            parts.append(self.scale**2 * inner.sum((-1, -2)))
        return torch.stack(parts, -1).clamp(min=0)

    def norms(self, base: Any) -> Tensor:
        """‖ΔW‖_F / ‖W‖_F of each row, block and target: [B, L, targets]."""
        weights = [
            torch.stack([torch.linalg.vector_norm(base.linear(number, target)) for target in self.factors])
            for number in range(self.shape[1])
        ]
        return self.squares().sqrt() / torch.stack(weights)
