"""Averages of parameters, ours and those that optimizers keep, and their exchange for the length of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.state_tree import clean_name


class EMA:
    """shadow <- rate · shadow + (1 - rate) · parameter, no bias correction; parameters that need no gradient
    are left out.

    Raises ValueError for a rate outside [0, 1).
    """

    def __init__(self, named_params: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], rate: float) -> None:
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"ema_rate={rate}: expected a number from 0 up to, not including, 1")
        pairs = named_params.items() if isinstance(named_params, Mapping) else named_params
        self.params = {name: param for name, param in pairs if param.requires_grad}
        self.rate = rate
        self.shadow = {name: param.detach().clone() for name, param in self.params.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadows towards the parameters, in place."""
        if self.shadow:
            torch._foreach_lerp_(list(self.shadow.values()), self._values(), 1.0 - self.rate)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside the block the parameters hold the averages; afterwards exactly what they held before.

        Values are copied, not pointers: views into the parameters (flat buffers, recorded graphs) stay valid.
        """
        values = self._values()
        with torch.no_grad():
            kept = [value.clone() for value in values]
            for value, shadow in zip(values, self.shadow.values(), strict=True):
                value.copy_(shadow)
        try:
            yield
        finally:
            with torch.no_grad():
                for value, old in zip(values, kept, strict=True):
                    value.copy_(old)

    def state_dict(self) -> dict[str, Tensor]:
        """The shadows by parameter name (no copies)."""
        return dict(self.shadow)

    @torch.no_grad()
    def restart(self, state: Mapping[str, Tensor]) -> None:
        """Begin with the averages in `state`; a parameter that it lacks begins with its present value.

        Raises ValueError that names an average of another shape.
        """
        for name, shadow in self.shadow.items():
            value = state.get(name, self.params[name].detach())
            if value.shape != shadow.shape:
                raise ValueError(
                    f"EMA state of {name!r} has shape {tuple(value.shape)}, expected {tuple(shadow.shape)}"
                )
            shadow.copy_(value)

    def _values(self) -> list[Tensor]:
        return [param.detach() for param in self.params.values()]


def averages(ema: EMA | None, optimizers: Mapping[str, Any]) -> list[AbstractContextManager[None]]:
    """Exchanges of weights that an evaluation enters: for our average, else for those that optimizers keep."""
    if ema is not None:
        return [ema.swapped()]
    return [o.evaluating() for o in optimizers.values() if getattr(o, "evaluates_others", False)]


def averaged_weights(module: nn.Module, ema: EMA | None, optimizers: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The weights that evaluations use, by clean name, where they are not the trained ones themselves."""
    if ema is not None:
        return ema.state_dict()
    swaps = averages(None, optimizers)
    with ExitStack() as weights:
        for swap in swaps:
            weights.enter_context(swap)
        named = [(clean_name(name), p) for name, p in module.named_parameters() if p.requires_grad]
        return {name: p.detach().clone() for name, p in named} if swaps else None
