"""The low-rank changes that an adapter makes to the blocks of a base, row by row, as one object with checked shapes.

B rows (1: the same for all), L blocks, r rank; a target's linear layer maps n to m numbers and becomes
W + scale · Bᵀ A with A [r, n], B [r, m].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.feedback.apply import FORMS, Form, choose
from models.feedback.config import BaseConfig
from models.feedback.layers import Changes
from models.layers import CastedLinear

Pair = tuple[Tensor, Tensor]
TARGETS = ("q", "k", "v", "o", "fc", "proj")


@dataclass(frozen=True)
class LowRankChange:
    """One target of one block: a [B, r, n], b [B, r, m]."""

    a: Tensor
    b: Tensor
    scale: float
    form: Form

    def __call__(self, linear: CastedLinear, x: Tensor) -> Tensor:
        rank, n = self.a.shape[-2:]
        sides = (n, self.b.shape[-1])
        form = choose(self.form, x.shape[0], x.shape[1], rank, sides, x.dtype, x.device.type)
        if form == "dense" and self.form == "auto" and not self.b.any():
            form = "lowrank"  # a change that is still zero leaves the base as it is, bit for bit
        return FORMS[form](linear, x, self.a, self.b, self.scale)


@dataclass(frozen=True)
class LoraDelta:
    """Factors {target: (A [B, L, r, n], B [B, L, r, m])} and the scale of their products.

    Raises: ValueError where the factors do not agree in B, L or r, or a target is unknown.
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
        """Raises: ValueError that names both values, where blocks, widths or rows are not those of the base."""
        given, blocks, _ = self.shape
        if blocks != config.n_layer:
            raise ValueError(f"the delta is for {blocks} blocks, the base has n_layer={config.n_layer}")
        if given not in (1, rows):
            raise ValueError(f"the delta is for {given} rows, the batch has {rows}")
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

    def each(self, change: Callable[[Tensor], Tensor]) -> LoraDelta:
        """The same with `change` applied to every factor."""
        return replace(self, factors={name: (change(a), change(b)) for name, (a, b) in self.factors.items()})

    def plus(self, other: LoraDelta) -> LoraDelta:
        """The sum of two changes of the same rows: their factors side by side, so its rank is the sum of the ranks.

        Raises: ValueError where scale or targets are not the same.
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
        """Row i gets the delta of row i - by: the shuffled-condition control."""
        return self.each(lambda part: part.roll(by, dims=0))

    def mean(self) -> LoraDelta:
        """One delta for all rows, of mean factors: the mean-delta control."""
        return self.each(lambda part: part.mean(0, keepdim=True))

    def zeros_like(self) -> LoraDelta:
        """A delta that changes nothing."""
        return self.each(torch.zeros_like)

    def detach(self) -> LoraDelta:
        """The same without gradients."""
        return self.each(Tensor.detach)

    def dense(self, number: int, target: str) -> Tensor:
        """The change of one linear layer as matrices [B, m, n], in at least float32."""
        a, b = (part[:, number] for part in self.factors[target])
        wide = torch.promote_types(a.dtype, torch.float32)
        return self.scale * b.to(wide).transpose(1, 2) @ a.to(wide)

    def squares(self) -> Tensor:
        """‖ΔW‖²_F of every row, block and target: [B, L, targets]; tr((A Aᵀ)(B Bᵀ)), so no ΔW is formed."""
        parts = []
        for a, b in self.factors.values():
            wide = torch.promote_types(a.dtype, torch.float32)
            a, b = a.to(wide), b.to(wide)
            inner = (a @ a.transpose(-1, -2)) * (b @ b.transpose(-1, -2))
            parts.append(self.scale**2 * inner.sum((-1, -2)))
        return torch.stack(parts, -1).clamp(min=0)

    def norms(self, base: Any) -> Tensor:
        """‖ΔW‖_F / ‖W‖_F of every row, block and target: [B, L, targets]."""
        weights = [
            torch.stack([torch.linalg.vector_norm(base.linear(number, target)) for target in self.factors])
            for number in range(self.shape[1])
        ]
        return self.squares().sqrt() / torch.stack(weights)

    def to_lora(self, number: int) -> dict[str, Tensor]:
        """The delta of one row as an ordinary LoRA: `h.{l}.{target}.lora_A` [r, n] and `lora_B` [m, r], scale
        included."""
        tensors = {}
        for target, (a, b) in self.factors.items():
            for block in range(self.shape[1]):
                tensors[f"h.{block}.{target}.lora_A"] = a[number, block].detach().clone()
                tensors[f"h.{block}.{target}.lora_B"] = self.scale * b[number, block].detach().t().contiguous()
        return tensors
