"""Attention weights from scores: softmax and alternatives.

All take scores [..., h, T, S] in at least float32 with -inf at masked keys, and return 0 there. n (`visible`) is the
number of keys visible to a query, so that weights do not depend on later tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CONSMAX_BETA, _CONSMAX_GAMMA = 2.5, 100.0


class Softmax(nn.Module):
    def forward(self, scores: Tensor, visible: Tensor) -> Tensor:
        return scores.softmax(-1)


class Softmax1(nn.Module):
    """exp(s_i) / (1 + Σ exp(s_j)), so that a head may attend to nothing (Miller 2023, "off by one")."""

    def forward(self, scores: Tensor, visible: Tensor) -> Tensor:
        peak = scores.detach().amax(-1, keepdim=True).clamp(min=0.0)
        exps = torch.exp(scores - peak)
        return exps / (torch.exp(-peak) + exps.sum(-1, keepdim=True))


class Relu2Max(nn.Module):
    """relu(s)² / n (So et al. 2021 for the square, Wortsman et al. 2023, arXiv 2309.08586, for the divisor)."""

    def forward(self, scores: Tensor, visible: Tensor) -> Tensor:
        return torch.relu(scores).square() / visible


class SigmoidMax(nn.Module):
    """sigmoid(s - log n) (Ramapuram et al. 2024, arXiv 2409.04431)."""

    def forward(self, scores: Tensor, visible: Tensor) -> Tensor:
        return torch.sigmoid(scores - visible.log())


class ConSmax(nn.Module):
    """exp(s - β) / γ with learned β, γ per head: no sum over keys (Liu et al. 2024, arXiv 2402.10930)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((heads,), _CONSMAX_BETA))
        self.gamma = nn.Parameter(torch.full((heads,), _CONSMAX_GAMMA))

    def forward(self, scores: Tensor, visible: Tensor) -> Tensor:
        return torch.exp(scores - self.beta.view(-1, 1, 1)) / self.gamma.view(-1, 1, 1)


def make_weighting(variant: str, heads: int) -> nn.Module:
    """The module for `softmax_variant_attn`."""
    if variant == "consmax":
        return ConSmax(heads)
    return {"softmax": Softmax, "softmax1": Softmax1, "relu2max": Relu2Max, "sigmoidmax": SigmoidMax}[variant]()
