"""Which keys of a structured config are read: what nothing reads is a key that does nothing.

For probes and tests; the config of a run is plain dataclasses, which torch.compile can trace.
"""

from __future__ import annotations

import functools
from dataclasses import fields, is_dataclass
from typing import Any


def unread(instance: Any, where: str = "") -> list[str]:
    """Dotted keys of a structured instance that nothing has read since, nested blocks included."""
    missing: list[str] = []
    for field in fields(instance):
        value, key = vars(instance)[field.name], f"{where}.{field.name}" if where else field.name
        items = value if isinstance(value, list) else []
        blocks = {key: value} | {f"{key}[{i}]": item for i, item in enumerate(items)}
        blocks = {place: block for place, block in blocks.items() if is_dataclass(block)}
        if not blocks and field.name not in vars(instance).get("_reads", ()):
            missing.append(key)
        missing += [line for place, block in blocks.items() for line in unread(block, place)]
    return missing


def track(instance: Any) -> Any:
    """Let a dynamic subclass record reads from now on, nested blocks included; returns the instance."""
    for value in vars(instance).values():
        for block in value if isinstance(value, list) else [value]:
            if is_dataclass(block):
                track(block)
    cls: Any = type(instance)
    if not hasattr(cls, "_records"):
        object.__setattr__(instance, "__class__", _recording(cls))
    return instance


@functools.cache
def _recording(cls: Any) -> Any:
    names, plain = frozenset(field.name for field in fields(cls)), cls.__getattribute__

    def read(self: Any, name: str) -> Any:
        if name in names:
            plain(self, "__dict__").setdefault("_reads", set()).add(name)
        return plain(self, name)

    return type(cls.__name__, (cls,), {"__getattribute__": read, "__module__": cls.__module__, "_records": cls})
