"""Finds config keys that nothing reads: none of our compiled functions names them, and no tiny instance reads them.

Python stores with each function the names of attributes and modules that it uses, which are cheap to compare. Only for
a key that is not among them (it may be read in another way) a tiny instance is run. A key that is named but never
reached is left to the probes (DYN716).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType

from engine.cli.keys import keys_of
from engine.registry import resolve, split_name
from verification.modules import closure, code_of, nested
from verification.recall import recall
from verification.rule import inert
from verification.spec import shrunk
from verification.subject import Subject
from verification.tree import CODE

BY_NAME = frozenset(("getattr", "attrgetter", "asdict", "astuple", "vars", "__dict__"))
"""Names that read a field by a string: every string in a function that uses one counts as read."""
INTERPOLATED = frozenset(("script",))
"""Keys that only Hydra, the command line or other keys read."""


def unread_arch(subject: Subject) -> list[str]:
    """Fields of the model's config that nothing reads, without those that it declares to have no effect."""
    if not (subject.model.config and subject.model.callable) or subject.kind == "launch":
        return []
    if (split := split_name(subject.model.text, "models")) is None or split[0][0] != "models":
        return []  # a class of another package: ARC310 and SCR112
    unnamed = recall(["unnamed", subject.model.text], lambda: _unnamed(subject), keep_if=lambda keys: True)
    keys = [f"arch.{key}" for key in unnamed]
    return [key.removeprefix("arch.") for key in never_read(subject, [key for key in keys if not inert(subject, key)])]


def _unnamed(subject: Subject) -> list[str]:
    model = resolve(subject.model.text, "models")
    schema = model.Config  # type: ignore[attr-defined]
    names = names_used(closure(subject.root, [model.__module__, schema.__module__], ("models",)))
    return [key for key in keys_of(schema) if key.rpartition(".")[2] not in names]


def unread_schema(subject: Subject) -> list[str]:
    """Keys of the script's schema that neither script, engine, family nor data code reads."""
    schema = subject.schema
    if schema is None or subject.kind == "launch":
        return []
    files = [path for name in ("base", "arch") for path in sorted((subject.root / "config" / name).glob("*.yaml"))]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    key = ["unnamed keys", subject.script_stem, subject.package, text]
    unnamed = recall(key, lambda: _unnamed_keys(subject, schema, text), keep_if=lambda keys: True)
    return never_read(subject, unnamed)


def _unnamed_keys(subject: Subject, schema: type, text: str) -> list[str]:
    package = subject.package
    folder = subject.root.joinpath(*package.split("."))
    parts = [f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem != "verify"]
    names = names_used(closure(subject.root, [subject.script_stem, *parts], (*CODE, "launcher")))
    keys = keys_of(schema)
    used = {key for key in keys if f"${{{key}}}" in text or f"${{oc.select:{key}," in text}
    return [key for key in keys if key.rpartition(".")[2] not in names | used | INTERPOLATED]


def never_read(subject: Subject, unnamed: list[str]) -> list[str]:
    """Those of the `unnamed` keys that a tiny instance of the command does not read either; [] if it cannot be run."""
    config, spec, script = subject.resolved, subject.family, subject.trace.script
    module = script.module if script else None
    if not unnamed or config is None or spec is None or module is None:
        return []
    from verification.probes.session import keys_unread  # loads torch

    key = ["unread", subject.script_stem, shrunk(spec, config, Path("data"), narrow=False)]
    unread = recall(key, lambda: keys_unread(config, module), keep_if=lambda keys: keys is not None)
    return [key for key in unnamed if key in (unread or ())]


def names_used(files: dict[str, Path]) -> set[str]:
    """Names that the functions of modules use; a check in __post_init__ does not count."""
    return set().union(*map(_names, files.values()))


@functools.cache
def _names(path: Path) -> frozenset[str]:
    return frozenset(_used(code_of(path)))


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in nested(code):
        yield from _with_nested(one)


def _texts(constants: Iterable[object]) -> Iterator[str]:
    for value in constants:
        if isinstance(value, str):
            yield value
        elif isinstance(value, tuple | frozenset):
            yield from _texts(value)


def _used(code: CodeType) -> Iterator[str]:
    if code.co_flags & inspect.CO_OPTIMIZED:  # a function, not a class body, whose names are those it defines
        yield from code.co_names
        parts = list(_with_nested(code))
        if any(BY_NAME.intersection(part.co_names) for part in parts):
            yield from (text for part in parts for text in _texts(part.co_consts))
    methods = nested(code)
    # __post_init__ does not count, nor do private methods that only it calls.
    checks = [one for one in methods if one.co_name == "__post_init__"]
    called = {name for one in checks for name in _used(one) if name.startswith("_")} if checks else set()
    if called:
        called -= {name for one in methods if one not in checks for name in _used(one) if name != one.co_name}
    for one in methods:
        if one not in checks and one.co_name not in called:
            yield from _used(one)
