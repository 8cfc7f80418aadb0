"""The `optimizer` block of a config: one optimizer for all parameters, or one for hidden matrices plus `rest`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.errors import UsageError
from engine.io import print_rank0
from engine.optim import build_optimizer

MATRICES_ONLY = ("muon", "normuon")
RATE_FINDERS = ("prodigy", "dadapt")
"""Name prefixes of optimizers that estimate the learning rate themselves."""
USUAL_RATES = {"sgd": 5e-2, "adagrad": 1e-2, "adafactor": 1e-2, "shampoo": 1e-2}
"""Usual learning rates of optimizers that make hardly any progress at AdamW's."""


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer of `engine.optim`; `lr` is its peak learning rate, None the run's."""

    name: str
    options: dict[str, Any]
    lr: float | None = None


def optimizer_settings(optimizer: Mapping[str, Any]) -> list[OptimizerChoice]:
    """The optimizer of a block, followed by its `rest` if it only takes hidden matrices.

    Raises:
        UsageError: unknown keys, or a matrix optimizer without `rest`.
    """
    _check_keys("optimizer", optimizer, {"name", "options", "rest"})
    name, rest = str(optimizer.get("name")), optimizer.get("rest") or {}
    if name in MATRICES_ONLY and not rest:
        raise UsageError(
            f"optimizer.name={name} takes hidden matrices only: set optimizer={name}, whose file has a rest"
        )
    if rest and name not in MATRICES_ONLY:
        raise UsageError(f"optimizer.rest has no meaning with optimizer.name={name}, which takes all parameters")
    both = [optimizer, rest] if rest else [optimizer]
    for where, each in zip(("optimizer", "optimizer.rest"), both, strict=False):
        if not isinstance(each, Mapping) or "name" not in each:
            raise UsageError(f"{where}: expected a block with a name, got {each!r}")
        if not isinstance(each.get("options") or {}, Mapping):
            raise UsageError(f"{where}.options: expected a block of keys, got {each['options']!r}")
    if rest:
        _check_keys("optimizer.rest", rest, {"name", "options", "lr"})
        if not isinstance(rate := rest.get("lr", 0.0), int | float) or rate < 0:
            raise UsageError(f"optimizer.rest.lr={rate}: expected a number, 0 or more")
    return [OptimizerChoice(str(each["name"]), dict(each.get("options") or {}), each.get("lr")) for each in both]


def check_optimizers(optimizer: Mapping[str, Any], lr: float) -> None:
    """Check every optimizer of the block. Raises: UsageError."""
    for choice in optimizer_settings(optimizer):
        check_optimizer(choice.name, choice.options, lr if choice.lr is None else choice.lr)


def check_optimizer(name: str, options: Mapping[str, Any], learning_rate: float) -> None:
    """Build the optimizer over a toy parameter; print a note if the learning rate is far below its usual one.

    Raises:
        UsageError: an unknown optimizer or option, or an optimizer that learns nothing at this rate.
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
        print_rank0(f"note: {inner} usually needs a learning_rate near {usual:g}; it is {learning_rate:g}")


def _check_keys(where: str, block: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(block.keys() - known):
        named = ", ".join(sorted(known - {"rest"})) + (", or rest" if "rest" in known else "")
        raise UsageError(f"{where}.{unknown[0]}: expected {named}; an option goes under {where}.options")
