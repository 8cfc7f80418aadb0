"""The block `optimizer` of a config: one optimizer for all, or one for hidden matrices and another for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import UsageError
from engine.optim import check_optimizer

MATRICES_ONLY = ("muon", "normuon")


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer of `engine.optim`; `lr` is its peak rate, None that of the run."""

    name: str
    options: dict[str, Any]
    lr: float | None = None


def optimizer_settings(optimizer: Mapping[str, Any]) -> list[OptimizerChoice]:
    """The optimizer, and what takes the rest where it is for hidden matrices only.

    Raises:
        UsageError: keys that mean nothing here, or a matrix optimizer without `rest`.
    """
    _check_keys("optimizer", optimizer, {"name", "options", "rest"})
    name, rest = str(optimizer.get("name")), optimizer.get("rest") or {}
    if name in MATRICES_ONLY and not rest:
        raise UsageError(
            f"optimizer.name={name} takes hidden matrices only: say optimizer={name}, whose file has a rest"
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
    """Try each one of the block. Raises: UsageError."""
    for choice in optimizer_settings(optimizer):
        check_optimizer(choice.name, choice.options, lr if choice.lr is None else choice.lr)


def _check_keys(where: str, block: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(block.keys() - known):
        named = ", ".join(sorted(known - {"rest"})) + (", or rest" if "rest" in known else "")
        raise UsageError(f"{where}.{unknown[0]}: expected {named}; an option goes under {where}.options")
