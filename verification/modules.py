"""The modules of a source tree and their imports, read from compiled code."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

from verification.tree import CODE, sources


def closure(root: Path, modules: Iterable[str], packages: tuple[str, ...]) -> dict[str, Path]:
    """Dotted name -> file of `modules` and of everything in `packages` that they import, directly or indirectly."""
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
    """Dotted name -> file of every module of our packages and of the scripts at the root."""
    files = sources(root, (*CODE, "launcher"))
    return {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for name, path in files.items()}


def module_file(root: Path, name: str) -> Path | None:
    """The file of a module of the tree; None if there is none."""
    path = root.joinpath(*name.split("."))
    places = (path.with_suffix(".py"), path / "__init__.py")
    return next((place for place in places if place.is_file()), None)


@functools.cache  # for a process, code does not change
def code_of(path: Path) -> CodeType:
    """The compiled module, from Python's bytecode cache if it is there. Raises: SyntaxError."""
    code = SourceFileLoader(path.stem, str(path)).get_code(path.stem)
    assert isinstance(code, CodeType)
    return code


def nested(code: CodeType) -> list[CodeType]:
    """The code objects of the functions and classes directly inside `code`."""
    return [one for one in code.co_consts if isinstance(one, CodeType)]


@functools.cache
def imports(path: Path, packages: tuple[str, ...]) -> tuple[str, ...]:
    """Dotted names below `packages` that a module imports anywhere: `a.b`, and `a.b.c` for `from a.b import c`."""
    names: dict[str, None] = {}
    pending = [code_of(path)]
    while pending:
        code = pending.pop()
        pending += nested(code)
        ours = [name for name in code.co_names if name.partition(".")[0] in packages]
        names |= dict.fromkeys([*ours, *(f"{name}.{other}" for name in ours for other in code.co_names)])
    return tuple(names)
