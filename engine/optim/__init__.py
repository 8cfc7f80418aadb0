"""Optimizers by name. All have `step(lr_scale, ok)`, `state_dict()` and `load_state_dict(state)`.

Add one with a line in `OPTIMIZERS`: a callable of (params, names, *, lr, **options).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from engine.errors import UsageError
from engine.io import closest
from engine.optim.adam import AdamATan2, AdamW
from engine.optim.sparse_sign import SparseSignSGD, SparseTable, build_sparse

__all__ = ["OPTIMIZERS", "AdamATan2", "AdamW", "Optimizer", "SparseSignSGD", "SparseTable", "build_optimizer"]


class Optimizer(Protocol):
    """What the trainer asks of an optimizer."""

    lr: float

    def step(self, lr_scale: float = 1.0, ok: Tensor | None = None) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam_atan2": AdamATan2,
    "adamw": AdamW,
    "sparse_sign_sgd": build_sparse,
}
_OPTION_SOURCE: dict[str, Callable[..., Any]] = {"sparse_sign_sgd": SparseSignSGD}


def build_optimizer(
    name: str,
    params: Mapping[str, nn.Parameter] | Sequence[nn.Parameter] | SparseTable,
    lr: float,
    options: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
) -> Optimizer:
    """The optimizer `name` over `params` (dense: parameters by name, or a list with `names`; sparse: a
    table).

    Raises UsageError for an unknown name or option (with the nearest choice) and for a value out of range.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"optimizer {name!r} is not known: {closest(name, OPTIMIZERS)}")
    signature = inspect.signature(_OPTION_SOURCE.get(name, OPTIMIZERS[name])).parameters.values()
    known = [p.name for p in signature if p.kind is p.KEYWORD_ONLY and p.name != "lr"]
    for key in options or {}:
        if key not in known:
            raise UsageError(f"optimizer {name} has no option {key!r}: {closest(key, known)}")
    if isinstance(params, Mapping):
        names, params = list(params.keys()), list(params.values())
    try:
        return OPTIMIZERS[name](params, names, lr=lr, **(options or {}))
    except ValueError as error:
        raise UsageError(f"optimizer {name}: {error}") from error
