"""Optimizers by name. All have `step(lr_scale, ok)`, `state_dict()` and `load_state_dict(state)`.

Ours are in `OPTIMIZERS`: callables of (params, names, *, lr, **options). Any other name is looked up in torch.optim,
then in the pytorch-optimizer library (`engine/optim/library.py`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.errors import UsageError
from engine.io import did_you_mean, print_rank0
from engine.optim.builtin import AdamATan2, Lookahead, SparseSignSGD, build_sparse
from engine.optim.library import EXTRA, TORCH, Block, LibraryOptimizer, build_library, find_class, library_names
from engine.task import ParamGroup, SparseTable

__all__ = [
    "OPTIMIZERS",
    "AdamATan2",
    "LibraryOptimizer",
    "Lookahead",
    "Optimizer",
    "SparseSignSGD",
    "SparseTable",
    "build_optimizer",
    "build_optimizers",
    "check_optimizer",
    "load_optimizers",
]


class Optimizer(Protocol):
    """What the trainer asks of an optimizer."""

    lr: float

    def step(self, lr_scale: float = 1.0, ok: Tensor | None = None) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def build_lookahead(
    params: Sequence[nn.Parameter],
    names: Sequence[str],
    blocks: Sequence[Block] = (),
    *,
    lr: float,
    inner: str = "adamw",
    inner_options: Mapping[str, Any] | None = None,
    k: int = 6,
    alpha: float = 0.5,
) -> Lookahead:
    """Lookahead around the optimizer `inner`, which takes `inner_options`."""
    inside = _build(inner, blocks or [Block(params=params, names=names)], lr, inner_options or {})
    return Lookahead(inside, params, names, k=k, alpha=alpha)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam_atan2": AdamATan2,
    "lookahead": build_lookahead,
    "sparse_sign_sgd": build_sparse,
}
_OPTION_SOURCE: dict[str, Callable[..., Any]] = {"sparse_sign_sgd": SparseSignSGD}
DECAY = "weight_decay"


def build_optimizer(
    name: str,
    params: Mapping[str, nn.Parameter] | Sequence[nn.Parameter] | SparseTable,
    lr: float,
    options: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
    fused_rows: Mapping[str, Sequence[int]] | None = None,
) -> Optimizer:
    """The optimizer `name` over `params` (dense: parameters by name, or a list with `names`; sparse: a
    table). `fused_rows` cuts parameters into rows that a library's optimizer takes as matrices of their own.

    Raises UsageError for an unknown name or option (with the nearest choice) and for a value out of range.
    """
    if isinstance(params, Mapping):
        names, params = list(params.keys()), list(params.values())
    if not isinstance(params, Sequence):
        _check_options(name, options or {})
        return _or_usage_error(name, lambda: OPTIMIZERS[name](params, names, lr=lr, **(options or {})))
    return _build(name, [Block(params=params, names=names, fused_rows=fused_rows or {})], lr, options or {})


def build_optimizers(groups: Sequence[ParamGroup]) -> dict[str, Optimizer]:
    """The optimizers of a run, by the names of their groups joined with `+`.

    Groups that differ in weight decay alone share one optimizer, so that what it estimates over all its parameters (a
    step size, a norm) is one number.

    Raises UsageError like `build_optimizer`.
    """
    together: dict[str, list[ParamGroup]] = {}
    for group in groups:
        alike = json.dumps([group.optimizer, group.lr, _with_decay(group.options, None)], sort_keys=True, default=str)
        alone = group.table is not None or group.optimizer in OPTIMIZERS.keys() - {"lookahead"}
        together.setdefault(group.name if alone else alike, []).append(group)
    built: dict[str, Optimizer] = {}
    for members in together.values():
        first, name = members[0], "+".join(member.name for member in members)
        if len(members) == 1:
            built[name] = build_optimizer(
                first.optimizer, first.params, first.lr, first.options, fused_rows=first.fused_rows
            )
            continue
        blocks = [
            Block(
                params=list(member.dense.values()),
                names=list(member.dense),
                fused_rows=member.fused_rows,
                options={} if (decay := _decay(member.options)) is None else {DECAY: decay},
            )
            for member in members
        ]
        built[name] = _build(first.optimizer, blocks, first.lr, first.options)
    return built


def load_optimizers(optimizers: Mapping[str, Optimizer], stored: Mapping[str, Any]) -> None:
    """Put the states of a checkpoint in. Raises UsageError that names what does not fit."""
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
            reason = str(error) if isinstance(error, ValueError) else f"it is the state of another kind ({error!r})"
            raise UsageError(f"the checkpoint's optimizer state for '{name}': {reason}") from error


def _joined(states: Sequence[Any]) -> dict[str, Any]:
    """One state of those that an earlier version kept apart, a group each."""
    if "inner" in states[0]:
        slow = {name: value for state in states for name, value in state["slow"].items()}
        return {"inner": _joined([s["inner"] for s in states]), "slow": slow, "count": states[0]["count"]}
    state = {name: entry for each in states for name, entry in each["state"].items()}
    return {"steps": states[0]["steps"], "state": state, "groups": [g for each in states for g in each["groups"]]}


def _build(name: str, blocks: Sequence[Block], lr: float, options: Mapping[str, Any]) -> Optimizer:
    _check_options(name, options)
    params = [param for block in blocks for param in block.params]
    names = [each for block in blocks for each in block.names]
    if name == "lookahead":
        return _or_usage_error(name, lambda: build_lookahead(params, names, blocks, lr=lr, **options))
    if name in OPTIMIZERS:
        return _or_usage_error(name, lambda: OPTIMIZERS[name](params, names, lr=lr, **options))
    cls = find_class(name)
    assert cls is not None
    return _or_usage_error(name, lambda: build_library(name, cls, blocks, lr=lr, options=options))


def _or_usage_error(name: str, build: Callable[[], Optimizer]) -> Optimizer:
    try:
        return build()
    except (ValueError, TypeError) as error:
        raise UsageError(f"optimizer {name}: {error}") from error


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    source = _OPTION_SOURCE.get(name, OPTIMIZERS.get(name)) or find_class(name)
    if source is None:
        there = library_names()
        elsewhere = "" if there else f"; the pytorch-optimizer library, which is not installed, may have it: {EXTRA}"
        raise UsageError(
            f"optimizer {name!r} is not known: {did_you_mean(name, [*OPTIMIZERS, *TORCH, *there])}{elsewhere}"
        )
    known = _option_names(source)
    for key in options:
        if key not in known:
            raise UsageError(f"optimizer {name} has no option {key!r}: {did_you_mean(key, known)}")


def _decay(options: Mapping[str, Any]) -> Any:
    """The weight decay among `options`, or among those of the inner optimizer; None where neither has one."""
    return options.get(DECAY, (options.get("inner_options") or {}).get(DECAY))


def _with_decay(options: Mapping[str, Any], decay: Any) -> dict[str, Any]:
    """`options` with `decay` wherever they have a weight decay."""
    inner = {"inner_options": _with_decay(options["inner_options"], decay)} if options.get("inner_options") else {}
    return {**options, **({DECAY: decay} if DECAY in options else {}), **inner}


def _option_names(source: Callable[..., Any]) -> list[str]:
    """Keyword options of ours; of a library's class everything but what this project sets itself."""
    parameters = inspect.signature(source).parameters.values()
    ours = any(p.kind is p.KEYWORD_ONLY and p.name == "lr" for p in parameters)
    kinds = (
        {inspect.Parameter.KEYWORD_ONLY}
        if ours
        else {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    )
    taken = {"self", "params", "lr", "maximize", "differentiable", "capturable"}
    return [p.name for p in parameters if p.kind in kinds and p.name not in taken]


RATE_FINDERS = ("prodigy", "dadapt")
"""How the names of optimizers begin that estimate the learning rate."""
USUAL_RATES = {"sgd": 5e-2, "adagrad": 1e-2, "adafactor": 1e-2, "shampoo": 1e-2}
"""Of optimizers that hardly move at AdamW's."""


def check_optimizer(name: str, options: Mapping[str, Any], learning_rate: float) -> None:
    """Build it over a toy; a note where the learning rate is far below what it needs.

    Raises:
        UsageError: an unknown optimizer or option; one that learns nothing at this rate.
    """
    build_optimizer(name, {"toy": nn.Parameter(torch.zeros(4, 3))}, learning_rate, options)
    inner = str(options.get("inner", "adamw")) if name == "lookahead" else name
    if inner.startswith(RATE_FINDERS) and learning_rate < 0.1:
        raise UsageError(
            f"optimizer {inner} finds the learning rate itself and takes learning_rate as a factor on it: set "
            f"learning_rate=1 (it is {learning_rate:g})"
        )
    usual = USUAL_RATES.get(inner, 0.0)
    if learning_rate < usual / 3:
        print_rank0(f"note: {inner} usually wants a learning_rate near {usual:g}; it is {learning_rate:g}")
