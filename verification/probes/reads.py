"""Records which keys of a structured config are read: a key that nothing reads does nothing.

For probes and tests only; the config of a run is plain dataclasses, which torch.compile can trace.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import engine.registry
from engine.cli.keys import keys_of
from engine.schema import structure
from verification.probes.changes import candidates
from verification.probes.instance import Tiny, evaluate, fit, with_keys
from verification.probes.launch import replaced

COPIES = ("dataclasses", "replace")
"""Module and function that read all fields for a copy, which records its own reads."""


@dataclass
class Block:
    """A block of a config, and a function that builds it with another value of a key."""

    where: str
    instance: Any
    build: Callable[[str, Any], Any]


def unread_keys(tiny: Tiny) -> list[str]:
    """Keys of the run, of arch and of arch.loss that neither building, nor some steps, nor an evaluation reads.

    A key that only __post_init__ reads counts as read if a value derived from it is read.
    """
    blocks: list[Block] = []
    plain = engine.registry.build_config

    def tracked(cls: type, data: Mapping[str, Any], where: str, *rest: Any, **options: Any) -> Any:
        block = plain(cls, data, where, *rest, **options)
        if where in ("arch", "arch.loss") and is_dataclass(block):
            blocks.append(Block(where, track(block), lambda k, v: plain(cls, with_keys(data, {k: v}), where, *rest)))
        return block

    config = track(tiny.config())
    blocks.append(Block("", config, lambda k, v: structure(tiny.schema, with_keys(tiny.settings, {k: v}))))
    with replaced(plain, tracked):
        plan = tiny.build(config=config)
    fit(plan, config)
    evaluate(plan.task)
    unused: dict[str, bool] = {}
    for block in blocks:
        for key, (_, read) in leaves(block.instance).items():
            name = f"{block.where}.{key}" if block.where else key
            unused[name] = unused.get(name, True) and not read and not _derived(block, key)
    return [name for name, is_unused in unused.items() if is_unused]


def _derived(block: Block, key: str) -> bool:
    """Whether another value of a key changes another field of its block that was read."""
    before, known = leaves(block.instance), keys_of(type(block.instance)._records).get(key)
    value = before[key][0]
    others = candidates(known.kind if known else type(value), value)
    for other in [*others, f"{value}_"] if isinstance(value, str) else others:
        with contextlib.suppress(Exception):  # a value that does not fit
            after = leaves(block.build(key, other))
            if any(read and after.get(name, (None,))[0] != one for name, (one, read) in before.items()):
                return True
    return False


def leaves(instance: Any, where: str = "") -> dict[str, tuple[Any, bool]]:
    """Dotted name -> (value, whether it was read) for all fields of a structured instance and its nested blocks."""
    values: dict[str, tuple[Any, bool]] = {}
    for name, value in attributes(instance).items():
        key = f"{where}.{name}" if where else name
        items = value if isinstance(value, list) else []
        blocks = {key: value} | {f"{key}[{i}]": item for i, item in enumerate(items)}
        blocks = {place: block for place, block in blocks.items() if is_dataclass(block)}
        if not blocks:
            values[key] = value, name in getattr(type(instance), "_reads", ())
        for place, block in blocks.items():
            values |= leaves(block, place)
    return values


def unread(instance: Any, where: str = "") -> list[str]:
    """Dotted keys of a structured instance and its nested blocks that nothing has read."""
    return [key for key, (_, read) in leaves(instance, where).items() if not read]


def track(instance: Any) -> Any:
    """Record reads of an instance and its nested blocks from now on, by a dynamic subclass; returns the instance.

    Reads through its __dict__ are recorded, too: `vars(config)[name]`, `**vars(config)`.
    """
    for value in attributes(instance).values():
        for block in value if isinstance(value, list) else [value]:
            if is_dataclass(block):
                track(block)
    cls: Any = type(instance)
    if not hasattr(cls, "_records"):
        object.__setattr__(instance, "__class__", recorder := _recorder(cls))
        object.__setattr__(instance, "__dict__", Attributes(attributes(instance), recorder._reads))
    return instance


def attributes(instance: Any) -> dict[str, Any]:
    """A copy of an instance's attributes, taken without recording reads."""
    return dict(dict.items(object.__getattribute__(instance, "__dict__")))


def _recorder(cls: Any) -> Any:
    reads, plain = set[str](), cls.__getattribute__

    def read(self: Any, name: str) -> Any:
        caller = sys._getframe(1)
        if (caller.f_globals.get("__name__"), caller.f_code.co_name.strip("_")) != COPIES:
            reads.add(name)
        return plain(self, name)

    def equal(self: Any, other: object) -> bool:
        return isinstance(other, cls) and attributes(self) == attributes(other)

    own = {"__getattribute__": read, "__eq__": equal, "__hash__": cls.__hash__, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), {**own, "_records": cls, "_reads": reads})


class Attributes(dict[str, Any]):
    """The __dict__ of a tracked instance. It overrides `__iter__` so that `**` unpacks it item by item."""

    def __init__(self, values: Mapping[str, Any], reads: set[str]) -> None:
        super().__init__(values)
        self.reads = reads

    def __getitem__(self, name: str) -> Any:
        self.reads.add(name)
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        self.reads.add(name)
        return super().get(name, default)

    def items(self) -> Any:
        return {name: self[name] for name in self}.items()

    def values(self) -> Any:
        return {name: self[name] for name in self}.values()
