"""Lookahead around another optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Lookahead:
    """k steps of an inner optimizer, then a share `alpha` of the way from the slow weights (Zhang et al. 2019)."""

    def __init__(
        self, inner: Any, params: Sequence[nn.Parameter], names: Sequence[str], *, k: int, alpha: float
    ) -> None:
        if k < 1 or not 0.0 < alpha <= 1.0:
            raise ValueError(f"k={k}, alpha={alpha}: expected k of at least 1 and 0 < alpha <= 1")
        self.inner, self.params, self.names, self.k, self.alpha = inner, list(params), list(names), k, alpha
        self.lr = inner.lr
        self.slow = [param.detach().clone() for param in self.params]
        self.count = 0

    @torch.no_grad()
    def step(self, lr_scale: float = 1.0, ok: Tensor | None = None) -> None:
        """One inner step; every k-th one moves the slow weights and restarts the fast ones there."""
        if ok is not None and not bool(ok):
            return
        self.inner.step(lr_scale)
        self.count += 1
        if self.count % self.k == 0:
            torch._foreach_lerp_(self.slow, [param.detach() for param in self.params], self.alpha)
            torch._foreach_copy_([param.detach() for param in self.params], self.slow)

    def state_dict(self) -> dict[str, Any]:
        """Inner state, slow weights by name, steps so far."""
        slow = dict(zip(self.names, self.slow, strict=True))
        return {"inner": self.inner.state_dict(), "slow": slow, "count": self.count}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        for name, slow in zip(self.names, self.slow, strict=True):
            slow.copy_(state["slow"][name])
        self.count = int(state["count"])
