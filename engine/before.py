"""Configs that are older than a key: what a run that was stored without it goes on doing.

A schema's BEFORE has, for each key that came later, what a run did that does not say it: a value, or the value of
another key, written `${key}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def _reference(value: Any) -> str | None:
    return value[2:-1] if isinstance(value, str) and value.startswith("${") else None


def values_before(before: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What `before` says of the keys that a stored resolved config lacks."""
    missing = {key: value for key, value in before.items() if key not in config}
    return {key: value if (other := _reference(value)) is None else config.get(other) for key, value in missing.items()}


def complete(config: DictConfig, before: Mapping[str, Any]) -> None:
    """Put the keys that an unresolved stored config lacks into it, references as they are."""
    for key, value in before.items():
        other = _reference(value)
        if key not in config and (other is None or other in config):
            OmegaConf.update(config, key, value)
