"""The keys that a schema (or a class named in a config) declares: name, type, default and docstring, for errors, the
translator and --help."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import textwrap
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from engine.fields import Inert, Range, declared, value_at

NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null", Any: "any"}


@dataclass(frozen=True)
class Key:
    """One declared key. `kind` is its type without `| None`; `default` is MISSING for a required key."""

    name: str
    kind: Any
    optional: bool
    default: Any
    doc: str
    marks: tuple[Any, ...] = ()
    """Annotations of its type (Range, Inert)."""
    place: tuple[str, int] = ("", 0)
    """File and line of the field."""

    @property
    def inert(self) -> tuple[Inert, ...]:
        """Conditions under which it has no effect."""
        return tuple(mark for mark in self.marks if isinstance(mark, Inert))

    @property
    def type_text(self) -> str:
        """Its type with its range, for --help and tables: `integer >= 1 or null`."""
        kind = " ".join([describe(self.kind), *(mark.interval for mark in self.marks if isinstance(mark, Range))])
        return f"{kind} or null" if self.optional else kind

    @property
    def meaning(self) -> str:
        """Its docstring, with the conditions under which it has no effect."""
        conditions = "; ".join(mark.condition for mark in self.inert if mark.condition)
        return f"{self.doc} No effect if {conditions}." if conditions else self.doc

    @property
    def unused(self) -> bool:
        """Whether it never has an effect: a key of a base class that this class does not use."""
        return any(mark.when == "" for mark in self.inert)

    @property
    def takes_bare_flag(self) -> bool:
        """Whether `--flag` alone means true: bools, and choices that include "true" (resume)."""
        return self.kind is bool or (get_origin(self.kind) is Literal and "true" in get_args(self.kind))


def describe(kind: Any) -> str:
    """A declared type in the words of errors and --help: `integer or null`, `auto|sdpa`, `list of text`."""
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind))
    if is_union(kind):
        return " or ".join(describe(part) for part in get_args(kind))
    if is_list(kind):
        return "list of " + describe((*get_args(kind), Any)[0])
    return NAMES.get(kind, "block of keys")


def hint_for(schema: type, name: str) -> str | None:
    """The replacement for a key of another program, from the FOREIGN_KEYS of the schema and its bases; else None."""
    known = {k: v for base in reversed(schema.__mro__) for k, v in vars(base).get("FOREIGN_KEYS", {}).items()}
    fitting = (hint for key, hint in known.items() if name == key or (key[-1] == "_" and name.startswith(key)))
    return next(fitting, None)


def is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def is_list(kind: Any) -> bool:
    return list in (kind, get_origin(kind))


@functools.cache
def keys_of(schema: type, prefix: str = "") -> dict[str, Key]:
    """All keys of a schema by dotted name, in order of declaration, including those of nested dataclasses."""
    hints, documented, marks, keys = get_type_hints(schema), _field_docs(schema), declared(schema), {}
    for field in fields(schema):
        name, kind = prefix + field.name, hints[field.name]
        parts = [part for part in get_args(kind) if part is not type(None)] if is_union(kind) else []
        optional = is_union(kind) and type(None) in get_args(kind)
        kind = parts[0] if len(parts) == 1 else kind
        default = field.default if field.default_factory is MISSING else field.default_factory()
        doc, place = documented.get(field.name, ("", ("", 0)))
        keys[name] = Key(name, kind, optional, default, doc, marks[field.name][1], place)
        if is_dataclass(kind):
            keys |= keys_of(kind, f"{name}.")  # type: ignore[arg-type]
    return keys


def _field_docs(schema: type) -> dict[str, tuple[str, tuple[str, int]]]:
    """(docstring, (file, line)) of each field of the class and its bases, parsed from source: Python keeps neither."""
    docs: dict[str, tuple[str, tuple[str, int]]] = {}
    for cls in reversed(schema.__mro__):
        if not is_dataclass(cls):
            continue
        try:
            lines, start = inspect.getsourcelines(cls)
            file = str(inspect.getsourcefile(cls))
        except (OSError, TypeError):  # a class without a source file (defined in a console or a test)
            continue
        tree = ast.parse(textwrap.dedent("".join(lines)))
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, below in pairwise([*body, ast.Pass()]):
            target = getattr(field, "target", None)
            if isinstance(field, ast.AnnAssign) and isinstance(target, ast.Name):
                text = getattr(getattr(below, "value", None), "value", None)
                documented = isinstance(below, ast.Expr) and isinstance(text, str)
                doc = " ".join(str(text).split()) if documented else docs.get(target.id, ("",))[0]
                docs[target.id] = doc, (file, start + field.lineno - 1)
    return docs


# --- keys of a class named in a config, found by parsing its source: --help must not import torch ---------------------

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def source_keys(name: str, slot: str, prefix: str) -> dict[str, Key]:
    """Keys (nested ones too) of the `Config` of `module@Class` in a slot, by dotted name with `prefix`.

    Imports only the module of the Config. Empty for a name that does not resolve: the launch reports why.
    """
    module, _, cls = str(name).partition("@")
    place = _lookup(module if module.split(".")[0] == slot else f"{slot}.{module}", cls)
    config = _config_of(*place) if place else None
    if config is None:
        return {}
    try:
        return keys_of(getattr(importlib.import_module(config[0]), config[1].name), prefix)
    except (ImportError, AttributeError, TypeError, NameError, SyntaxError, ValueError):
        return {}


def known_keys(schema: Any, config: Mapping[str, Any]) -> dict[str, Key]:
    """The keys of `schema`, and those of the classes named by its open blocks (arch) in `config`."""
    known = dict(keys_of(schema))
    for block in getattr(schema, "NESTED_SCHEMAS", {}):
        known |= source_keys(str(value_at(config, f"{block}.name", "")), "models", f"{block}.")
        known |= source_keys(str(value_at(config, f"{block}.loss.name", "")), "losses", f"{block}.loss.")
    return known


def inert_reason(schema: Any, key: str, config: Mapping[str, Any]) -> str:
    """Why the dotted `key` has no effect in the resolved `config`; "" if it has one. Does not import torch.

    A reason for a block applies to all keys in it. Reasons are declared with the fields (`engine.fields.Inert`).
    """
    known, place = known_keys(schema, config), key
    while place:
        for mark in known[place].inert if place in known else ():
            if mark.holds(config):
                return mark.reason
        place = place.rpartition(".")[0]
    return ""


@functools.cache
def _statements(module: str) -> list[ast.stmt]:
    """The statements at a module's top level, and in its `if TYPE_CHECKING:`."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    top = ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
    return [*top, *(node for one in top if isinstance(one, ast.If) for node in one.body)]


def _lookup(module: str, name: str) -> tuple[str, Any] | None:
    """(module, node) that defines a top-level name of a module, followed through imports from our packages."""
    for node in _statements(module):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if getattr(node, "name", None) == name or any(getattr(target, "id", None) == name for target in targets):
            return module, node
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return _lookup(_source(module, node), name)
    return None


def _source(module: str, node: ast.ImportFrom) -> str:
    """The module that a `from ... import` in `module` imports from."""
    package = module.split(".")[: -node.level] if node.level else []
    return ".".join([*package, *([node.module] if node.module else [])])


def _referent(module: str, node: ast.AST | None) -> tuple[str, Any] | None:
    """What `Name` or `module.Name` refers to in a module."""
    if isinstance(node, ast.Name):
        return _lookup(module, node.id)
    if not isinstance(node, ast.Attribute):
        return None
    owner = getattr(node.value, "id", None)
    for one in _statements(module):
        for alias in getattr(one, "names", ()):
            if (getattr(alias, "asname", None) or getattr(alias, "name", None)) == owner:
                package = f"{_source(module, one)}." if isinstance(one, ast.ImportFrom) else ""
                return _lookup(package + alias.name, node.attr)
    return None


def _config_of(module: str, cls: Any) -> tuple[str, Any] | None:
    """The class named by `Config = ...` in a class or one of its bases."""
    for node in getattr(cls, "body", ()):
        targets = [getattr(node, "target", None), *getattr(node, "targets", ())]
        if any(getattr(target, "id", None) == "Config" for target in targets):
            return _referent(module, node.value)
    above = (_referent(module, base) for base in getattr(cls, "bases", ()))
    return next((place for base in above if base and (place := _config_of(*base))), None)
