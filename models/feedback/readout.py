"""Turn the outputs of the weight tokens ("rows") into the factors of a delta.

Rows [B, L, R, D] are ordered by target, each with r rows of A and then r of B (R = 2·targets·r).
Shapes: B batch rows, L blocks, r rank, D width of the hypernetwork, n and m input and output width of a target.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.feedback.adapter_config import AdapterShape, HyperConfig
from models.feedback.base import BaseLM
from models.feedback.delta import LoraDelta, Pair
from models.layers import CastedLinear, rms_norm

_EPS = 1e-5


class RawReadout(nn.Module):
    """Uses the rows as factors, unscaled. For comparison only: training may diverge, more likely for larger r."""

    def __init__(self, config: HyperConfig, shape: AdapterShape, size: int) -> None:
        super().__init__()
        self.config, self.size, self.blocks = config, size, shape.base.n_layer

    def forward(self, rows: Tensor, base: BaseLM) -> tuple[LoraDelta, Tensor]:
        """(delta, mean square of its factors)."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        rank = self.config.lora_rank
        pairs = rows.unflatten(2, (len(self.config.targets), 2, rank)).unbind(2)
        factors = {
            str(name): (pair[:, :, 0], pair[:, :, 1]) for name, pair in zip(self.config.targets, pairs, strict=True)
        }
        return LoraDelta(factors, form=self.config.lora_apply), rows.square().mean()

    def capped(self, delta: LoraDelta, base: BaseLM) -> LoraDelta:
        """The delta unchanged: a raw readout has no cap."""
        return delta

    def static_delta(self, base: BaseLM) -> LoraDelta:
        """A zero delta: nothing is static here."""
        device = next(iter(self.buffers()), torch.empty(0)).device
        zero = torch.zeros(1, self.blocks, self.config.lora_rank, self.size, device=device)
        return LoraDelta({name: (zero, zero) for name in self.config.targets}, form=self.config.lora_apply)


class GatedReadout(nn.Module):
    """A = A₀ + W_A n_A / √n and B = B₀ + γ · W_B n_B with normed rows n_A, n_B and one gate γ per block and target.

    W_A and W_B are shared by all blocks, and the identity if a target has the width of the hypernetwork.
    """

    def __init__(self, config: HyperConfig, shape: AdapterShape, size: int) -> None:
        super().__init__()
        self.config = config
        blocks, rank = shape.base.n_layer, config.lora_rank
        self.gates = nn.Parameter(torch.zeros(len(config.targets), blocks))
        self.static_a, self.static_b = nn.ParameterDict(), nn.ParameterDict()
        self.heads = nn.ModuleDict()
        for target in config.targets:
            n, m = shape.base.sides(target)
            self.static_a[target] = nn.Parameter(torch.empty(blocks, rank, n).normal_(std=1 / math.sqrt(n)))
            self.static_b[target] = nn.Parameter(torch.zeros(blocks, rank, m))
            for side, width in (("a", n), ("b", m)):
                if width != size:
                    self.heads[f"{target}_{side}"] = CastedLinear(size, width)

    def forward(self, rows: Tensor, base: BaseLM) -> tuple[LoraDelta, Tensor]:
        """(delta, summed mean squares of the input-dependent parts of A and B)."""
        n = rms_norm(rows.to(torch.promote_types(rows.dtype, torch.float32)), _EPS)
        targets, rank = self.config.targets, self.config.lora_rank
        parts = n.unflatten(2, (len(targets), 2, rank)).unbind(2)  # each [B, L, 2, r, D]
        factors: dict[str, Pair] = {}
        size = n.new_zeros(())
        for number, (target, part) in enumerate(zip(targets, parts, strict=True)):
            a = self._head(target, "a", part[:, :, 0])
            a = a / math.sqrt(a.shape[-1])
            b = self.gates[number][:, None, None] * self._head(target, "b", part[:, :, 1])
            size = size + (a.square().mean() + b.square().mean()) / len(targets)
            factors[target] = self.static_a[target] + a, self.static_b[target] + b
        return self.capped(self._delta(factors), base), size

    def static_delta(self, base: BaseLM) -> LoraDelta:
        """The delta of A₀ and B₀ alone, with one row."""
        factors = {str(t): (self.static_a[t].unsqueeze(0), self.static_b[t].unsqueeze(0)) for t in self.config.targets}
        return self.capped(self._delta(factors), base)

    def _delta(self, factors: dict[str, Pair]) -> LoraDelta:
        return LoraDelta(factors, scale=self.config.scale, form=self.config.lora_apply)

    def _head(self, target: str, side: str, x: Tensor) -> Tensor:
        name = f"{target}_{side}"
        return self.heads[name](x) if name in self.heads else x

    def capped(self, delta: LoraDelta, base: BaseLM) -> LoraDelta:
        """Scale the delta so that ‖ΔW‖_F is at most delta_norm_cap · ‖W‖₂ in every row, block and target. Smaller
        deltas are bit-identical."""
        if self.config.delta_norm_cap is None:
            return delta
        squares, capped = delta.squares(), {}  # [B, L, targets]
        for number, (target, (a, b)) in enumerate(delta.factors.items()):
            limit = (self.config.delta_norm_cap * base.spectral_norms(target)).square().to(squares.dtype)
            # Squares, since the square root has no derivative at 0, where every delta starts.
            factor = limit / torch.maximum(squares[..., number], limit)
            capped[target] = a, b * factor.sqrt()[..., None, None]
        return replace(delta, factors=capped)
