"""Optimizers by name. All have `step(lr_scale, ok)`, `state_dict()` and `load_state_dict(state)`.

Ours are in `OPTIMIZERS`: callables of (params, names, *, lr, **options). Any other name is looked up in torch.optim,
then in the pytorch-optimizer library (`engine/optim/library.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from engine.errors import UsageError
from engine.io import closest
from engine.optim.adam import AdamATan2
from engine.optim.library import EXTRA, TORCH, LibraryOptimizer, Lookahead, build_library, find_class, library_names
from engine.optim.sparse_sign import SparseSignSGD, SparseTable, build_sparse

__all__ = [
    "OPTIMIZERS",
    "AdamATan2",
    "LibraryOptimizer",
    "Lookahead",
    "Optimizer",
    "SparseSignSGD",
    "SparseTable",
    "build_optimizer",
]


class Optimizer(Protocol):
    """What the trainer asks of an optimizer."""

    lr: float

    def step(self, lr_scale: float = 1.0, ok: Tensor | None = None) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def build_lookahead(
    params: Sequence[nn.Parameter], names: Sequence[str], *, lr: float, inner: str = "adamw",
    inner_options: Mapping[str, Any] | None = None, k: int = 6, alpha: float = 0.5,
) -> Lookahead:  # fmt: skip
    """Lookahead around the optimizer `inner`, which takes `inner_options`."""
    inside = build_optimizer(inner, params, lr, inner_options, names)
    return Lookahead(inside, params, names, k=k, alpha=alpha)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam_atan2": AdamATan2,
    "lookahead": build_lookahead,
    "sparse_sign_sgd": build_sparse,
}
_OPTION_SOURCE: dict[str, Callable[..., Any]] = {"sparse_sign_sgd": SparseSignSGD}


def build_optimizer(
    name: str,
    params: Mapping[str, nn.Parameter] | Sequence[nn.Parameter] | SparseTable,
    lr: float,
    options: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
    parts: Mapping[str, Sequence[int]] | None = None,
) -> Optimizer:
    """The optimizer `name` over `params` (dense: parameters by name, or a list with `names`; sparse: a
    table). `parts` cuts parameters into rows that a library's optimizer takes as matrices of their own.

    Raises UsageError for an unknown name or option (with the nearest choice) and for a value out of range.
    """
    make = OPTIMIZERS.get(name)
    cls = None if make else find_class(name)
    source = _OPTION_SOURCE.get(name, make) if make else cls
    if source is None:
        there = library_names()
        elsewhere = "" if there else f"; the pytorch-optimizer library, which is not installed, may have it: {EXTRA}"
        raise UsageError(f"optimizer {name!r} is not known: {closest(name, [*OPTIMIZERS, *TORCH, *there])}{elsewhere}")
    known = _option_names(source)
    for key in options or {}:
        if key not in known:
            raise UsageError(f"optimizer {name} has no option {key!r}: {closest(key, known)}")
    if isinstance(params, Mapping):
        names, params = list(params.keys()), list(params.values())
    try:
        if make is not None:
            return make(params, names, lr=lr, **(options or {}))
        assert cls is not None
        assert isinstance(params, Sequence)  # only ours take a sparse table
        return build_library(name, cls, params, names, lr=lr, options=options or {}, parts=parts or {})
    except (ValueError, TypeError) as error:
        raise UsageError(f"optimizer {name}: {error}") from error


def _option_names(source: Callable[..., Any]) -> list[str]:
    """Keyword options of ours; of a library's class everything but what this project sets itself."""
    parameters = inspect.signature(source).parameters.values()
    ours = any(p.kind is p.KEYWORD_ONLY and p.name == "lr" for p in parameters)
    kinds = {inspect.Parameter.KEYWORD_ONLY} if ours else {
        inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    }  # fmt: skip
    taken = {"self", "params", "lr", "maximize", "differentiable", "capturable"}
    return [p.name for p in parameters if p.kind in kinds and p.name not in taken]
