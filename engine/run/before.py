"""Configs that are older than a key: what a run that was stored without it goes on doing.

A schema's BEFORE has, for each key that came later, what a run did that does not say it: a value, or the value of
another key, written `${key}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engine.fields import value_at


def _reference(value: Any) -> str | None:
    return value[2:-1] if isinstance(value, str) and value.startswith("${") else None


def has_key(config: Any, key: str) -> bool:
    """Whether a plain container has the dotted `key`."""
    return value_at(config, key, MISSING) is not MISSING


def value_before(value: Any, config: Mapping[str, Any]) -> Any:
    """A value of `before`, its reference replaced by what the resolved `config` says."""
    return value if (other := _reference(value)) is None else config.get(other)


def as_written(value: Any, text: Any, config: Mapping[str, Any]) -> Any:
    """A value of `before` for the unresolved `text`: a reference to what only the defaults say is resolved."""
    other = _reference(value)
    return value if other is None or has_key(text, other) else value_at(config, other)


def values_before(before: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What `before` says of the keys that a stored resolved config lacks."""
    return {key: value_before(value, config) for key, value in before.items() if not has_key(config, key)}


def complete(config: DictConfig, before: Mapping[str, Any]) -> None:
    """Put the keys that an unresolved stored config lacks into it, references as they are."""
    plain = OmegaConf.to_container(config, resolve=False)
    for key, value in before.items():
        other = _reference(value)
        block, dot, _ = key.rpartition(".")
        stands = has_key(plain, key) or (dot and not has_key(plain, block))  # or there is nothing to put it into
        if not stands and (other is None or other in config):
            OmegaConf.update(config, key, value)
