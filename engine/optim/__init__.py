"""Optimizers by name, all with `step(lr_scale, ok)`, `state_dict()` and `load_state_dict(state)`.

Ours are in `OPTIMIZERS`: callables of (params, names, *, lr, **options), or of (table, *, lr, **options) for a sparse
table. Any other name is looked up in torch.optim, then in the pytorch-optimizer library (`engine/optim/library.py`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor, nn

from engine.errors import UsageError
from engine.io import did_you_mean
from engine.optim.builtin import AdamATan2, Lookahead, SparseSignSGD
from engine.optim.library import DECAY, EXTRA, TORCH, build_library, find_class, library_names
from engine.task import ParamGroup, SparseTable


class Optimizer(Protocol):
    """The interface that the trainer uses."""

    lr: float

    @property
    def capturable(self) -> bool:
        """Whether all steps are the same operations on the device, with `lr_scale` as a tensor [] float64."""
        ...

    def step(self, lr_scale: float | Tensor = 1.0, ok: Tensor | None = None) -> None: ...

    def count_step(self) -> None:
        """Count a step that a replayed graph took instead of `step`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def build_lookahead(
    groups: Sequence[ParamGroup],
    *,
    inner: str = "adamw",
    inner_options: Mapping[str, Any] | None = None,
    k: int = 6,
    alpha: float = 0.5,
) -> Lookahead:
    """Lookahead around the optimizer `inner` with `inner_options`, which are read from each group."""
    del inner_options
    inner_groups = [replace(each, optimizer=inner, options=each.options.get("inner_options") or {}) for each in groups]
    params = _dense(groups)
    return Lookahead(_build(inner_groups), [*params.values()], [*params], k=k, alpha=alpha)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam_atan2": AdamATan2,
    "lookahead": build_lookahead,
    "sparse_sign_sgd": SparseSignSGD,
}


def build_optimizer(
    name: str,
    params: dict[str, nn.Parameter] | SparseTable,
    lr: float,
    options: Mapping[str, Any] | None = None,
    fused_rows: Mapping[str, tuple[int, ...]] | None = None,
) -> Optimizer:
    """The optimizer `name` over parameters by name, or a sparse table. `fused_rows` splits parameters into rows that a
    library's optimizer treats as separate matrices.

    Raises: UsageError for an unknown name or option (with the nearest choice) and for a value out of range.
    """
    more = {"options": dict(options or {}), "fused_rows": dict(fused_rows or {})}
    return _build([ParamGroup(name=name, optimizer=name, lr=lr, params=params, **more)])


def build_optimizers(groups: Sequence[ParamGroup]) -> dict[str, Optimizer]:
    """The optimizers of a run, by the names of their groups joined with `+`.

    Groups that differ only in weight decay share one optimizer, so that what it estimates over all its parameters (a
    step size, a norm) is one number.

    Raises: UsageError like `build_optimizer`.
    """
    shared: dict[str, list[ParamGroup]] = {}
    for group in groups:
        key = json.dumps([group.optimizer, group.lr, _with_decay(group.options, None)], sort_keys=True, default=str)
        alone = group.table is not None or group.optimizer in OPTIMIZERS.keys() - {"lookahead"}
        shared.setdefault(group.name if alone else key, []).append(group)
    return {"+".join(each.name for each in members): _build(members) for members in shared.values()}


def load_optimizers(optimizers: Mapping[str, Optimizer], stored: Mapping[str, Any]) -> None:
    """Load the states of a checkpoint. Raises: UsageError that names what does not fit."""
    for name, optimizer in optimizers.items():
        parts = [stored.get(part) for part in name.split("+")]
        if name not in stored and any(part is None for part in parts):
            raise UsageError(
                f"the checkpoint holds no optimizer state for the group '{name}', only for {', '.join(stored)}: keep "
                "the optimizer and the parameters that the run began with, or start a new run (resume=false)"
            )
        try:
            optimizer.load_state_dict(stored[name] if name in stored else _joined(parts))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = (
                str(error)
                if isinstance(error, ValueError)
                else f"it is the state of another kind of optimizer ({error!r})"
            )
            raise UsageError(f"the checkpoint's optimizer state for '{name}': {reason}") from error


def _joined(states: Sequence[Any]) -> dict[str, Any]:
    """Merge states from a version that kept one per group."""
    if "inner" in states[0]:
        slow = {name: value for state in states for name, value in state["slow"].items()}
        return {"inner": _joined([s["inner"] for s in states]), "slow": slow, "count": states[0]["count"]}
    state = {name: entry for each in states for name, entry in each["state"].items()}
    return {"steps": states[0]["steps"], "state": state, "groups": [g for each in states for g in each["groups"]]}


def _build(groups: Sequence[ParamGroup]) -> Optimizer:
    """One optimizer over groups that differ only in weight decay."""
    name, lr, options = groups[0].optimizer, groups[0].lr, groups[0].options
    source = _checked_source(name, options)
    params = _dense(groups)
    try:
        if name == "lookahead":
            return build_lookahead(groups, **options)
        if groups[0].table is not None:
            return source(groups[0].table, lr=lr, **options)  # type: ignore[no-any-return]
        if name in OPTIMIZERS:
            return source([*params.values()], [*params], lr=lr, **options)  # type: ignore[no-any-return]
        return build_library(source, groups)
    except (ValueError, TypeError) as error:
        raise UsageError(f"optimizer {name}: {error}") from error


def _dense(groups: Sequence[ParamGroup]) -> dict[str, nn.Parameter]:
    return {name: param for group in groups for name, param in group.dense.items()}


def _checked_source(name: str, options: Mapping[str, Any]) -> Any:
    """The class or function that builds the optimizer `name`. Raises: UsageError for an unknown name or option."""
    source = OPTIMIZERS.get(name) or find_class(name)
    if source is None:
        there = library_names()
        elsewhere = "" if there else f"; the pytorch-optimizer library, which is not installed, may have it: {EXTRA}"
        raise UsageError(
            f"optimizer {name!r} is not known: {did_you_mean(name, [*OPTIMIZERS, *TORCH, *there])}{elsewhere}"
        )
    # Options: keyword-only arguments of ours; of a library's class, all arguments but those that we set ourselves.
    ours, either = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    kinds = (ours,) if name in OPTIMIZERS else (ours, either)
    parameters = inspect.signature(source).parameters.values()
    taken = {"self", "params", "lr", "maximize", "differentiable", "capturable"}
    known = [p.name for p in parameters if p.kind in kinds and p.name not in taken]
    for key in options:
        if key not in known:
            raise UsageError(f"optimizer {name} has no option {key!r}: {did_you_mean(key, known)}")
    return source


def _with_decay(options: Mapping[str, Any], decay: Any) -> dict[str, Any]:
    """`options` with every weight decay set to `decay`."""
    inner = {"inner_options": _with_decay(options["inner_options"], decay)} if options.get("inner_options") else {}
    return {**options, **({DECAY: decay} if DECAY in options else {}), **inner}
