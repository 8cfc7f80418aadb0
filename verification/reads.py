"""Config keys that no compiled code of ours names: what nothing reads cannot be configured.

Python keeps with each function the names of attributes and modules that it uses; only these are compared. A key that is
named but never reached is for the probes (DYN716) to observe.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

from engine.cli.keys import keys_of
from engine.registry import resolve
from verification.recall import recall
from verification.rule import inert
from verification.subject import Subject
from verification.tree import CODE, sources

BY_NAME = frozenset(("getattr", "attrgetter", "asdict", "astuple", "vars", "__dict__"))
"""What reads a field whose name is a text: every text in such a function counts as read."""
INTERPOLATED = frozenset(("script",))
"""Read by Hydra, the command line or other keys only."""


def unread_arch(subject: Subject) -> list[str]:
    """Fields of the model's config that no module of the model names, those that its family calls dead left out."""
    if not (subject.model.config and subject.model.callable) or subject.kind == "launch":
        return []
    unread = recall(["unread", subject.model.text], lambda: _unread(subject), lasts=lambda answer: True)
    return [key for key in unread if not inert(subject, f"arch.{key}")]


def _unread(subject: Subject) -> list[str]:
    model = resolve(subject.model.text, "models")
    schema = model.Config  # type: ignore[attr-defined]
    names = names_used(closure(subject.root, [model.__module__, schema.__module__], ("models",)))
    return [key for key in keys_of(schema) if key.rpartition(".")[2] not in names]


def unread_schema(subject: Subject) -> list[str]:
    """Keys of the script's schema that neither script, engine, family nor data code name."""
    schema = subject.schema
    if schema is None or subject.kind == "launch":
        return []
    files = [path for name in ("base", "arch") for path in sorted((subject.root / "config" / name).glob("*.yaml"))]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    question = ["unread keys", subject.script_stem, subject.package, text]
    return list(recall(question, lambda: _unread_keys(subject, schema, text), lasts=lambda answer: True))


def _unread_keys(subject: Subject, schema: type, text: str) -> list[str]:
    package = subject.package
    folder = subject.root.joinpath(*package.split("."))
    parts = [f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem != "verify"]
    names = names_used(closure(subject.root, [subject.script_stem, *parts], (*CODE, "launcher")))
    keys = keys_of(schema)
    used = {key for key in keys if f"${{{key}}}" in text or f"${{oc.select:{key}," in text}
    return [key for key in keys if key.rpartition(".")[2] not in names | used | INTERPOLATED]


@functools.cache
def optimizer_keys(root: Path) -> frozenset[str]:
    """Keys of the run that reach an optimizer through its file: what a file of config/optimizer takes as `${key}`."""
    files = sorted((root / "config" / "optimizer").glob("*.yaml"))
    return frozenset(re.findall(r"\$\{(\w+)\}", "".join(path.read_text(encoding="utf-8") for path in files)))


def closure(root: Path, modules: Iterable[str], packages: tuple[str, ...]) -> dict[str, Path]:
    """Dotted name -> file of some modules and of everything in `packages` that they import, directly or not."""
    known = modules_below(root)
    files: dict[str, Path] = {}
    pending = [name for name in modules if name in known]
    while pending:
        name = pending.pop()
        if name not in files:
            files[name] = known[name]
            pending += [one for one in imports(known[name], packages) if one in known]
    return files


@functools.cache
def modules_below(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of our packages, and of the scripts at the root."""
    files = sources(root, (*CODE, "launcher"))
    return {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for name, path in files.items()}


def module_file(root: Path, name: str) -> Path | None:
    """The file of a module of the tree, None where there is none."""
    path = root.joinpath(*name.split("."))
    places = (path.with_suffix(".py"), path / "__init__.py")
    return next((place for place in places if place.is_file()), None)


@functools.cache  # a process has the code that it has loaded
def code_of(path: Path) -> CodeType:
    """The compiled module, from Python's own cache where it has it. Raises: SyntaxError."""
    code = SourceFileLoader(path.stem, str(path)).get_code(path.stem)
    assert isinstance(code, CodeType)
    return code


def nested(code: CodeType) -> list[CodeType]:
    """The code of functions and classes right inside some code."""
    return [one for one in code.co_consts if isinstance(one, CodeType)]


@functools.cache
def imports(path: Path, packages: tuple[str, ...]) -> tuple[str, ...]:
    """Dotted names below `packages` that a module imports anywhere: `a.b`, and `a.b.c` of `from a.b import c`."""
    names: dict[str, None] = {}
    pending = [code_of(path)]
    while pending:
        code = pending.pop()
        pending += nested(code)
        ours = [name for name in code.co_names if name.partition(".")[0] in packages]
        names |= dict.fromkeys([*ours, *(f"{name}.{other}" for name in ours for other in code.co_names)])
    return tuple(names)


def names_used(files: dict[str, Path]) -> set[str]:
    """Names that functions of some modules use; a check in __post_init__ is no use."""
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
    if code.co_flags & inspect.CO_OPTIMIZED:  # a function: the names of a class body are those that it defines
        yield from code.co_names
        parts = list(_with_nested(code))
        if any(BY_NAME.intersection(part.co_names) for part in parts):
            yield from (text for part in parts for text in _texts(part.co_consts))
    methods = nested(code)
    checks = [one for one in methods if one.co_name == "__post_init__"]  # and the private ones that only it calls
    called = {name for one in checks for name in _used(one) if name.startswith("_")} if checks else set()
    if called:
        called -= {name for one in methods if one not in checks for name in _used(one) if name != one.co_name}
    for one in methods:
        if one not in checks and one.co_name not in called:
            yield from _used(one)
