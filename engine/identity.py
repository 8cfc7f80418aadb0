"""What makes two runs the same experiment: the config, less what may differ from launch to launch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def identity_of(config: Mapping[str, Any], *, without: Iterable[str]) -> dict[str, Any]:
    """The resolved `config` less the dotted keys `without`: what makes two runs the same experiment.

    1.0 becomes 1, so that `lr=1` and `lr=1.0` are the same run.
    """
    gone = set(without)

    def kept(node: Any, place: str) -> Any:
        if isinstance(node, Mapping):
            inner = {str(key): (value, f"{place}.{key}" if place else str(key)) for key, value in node.items()}
            return {key: kept(value, below) for key, (value, below) in inner.items() if below not in gone}
        if isinstance(node, list | tuple):
            return [kept(item, f"{place}[]") for item in node]
        return int(node) if isinstance(node, float) and node.is_integer() else node

    return kept(config, "")
