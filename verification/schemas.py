"""Dataclasses of the examined repository, made without importing the modules that hold them.

A config class is typed fields and a few cross-checks, yet its module imports torch. Only the statements that it needs
are executed, in a module of their own; what they take from other than standard libraries is an inert stand-in. The
result serves `engine.schema.structure`, whose errors are those of a launch.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
import types
from typing import Any

from verification.source import SLOTS, Module, Repo, walk

PREFIX = "_verification_schemas_"
OURS = (*SLOTS, "engine")
UNREADABLE = (LookupError, SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError)
"""What reading a value may raise."""
_made: dict[tuple[str, str, str], Any] = {}


class Inert:
    """Stands for a library that is not loaded: every attribute and call gives another one."""

    def __getattr__(self, name: str) -> Inert:
        if name.startswith("__"):
            raise AttributeError(name)
        return Inert()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # as a decorator it leaves what it decorates alone
        return args[0] if len(args) == 1 and not kwargs and isinstance(args[0], type | types.FunctionType) else Inert()


def dataclass_of(repo: Repo, module: str, name: str) -> type:
    """The dataclass `name` of `module`. Raises whatever its own statements raise, LookupError if it is not there."""
    made: type = value_of(repo, module, name)
    return made


def value_of(repo: Repo, module: str, name: str) -> Any:
    """What `module` binds to `name`: a dataclass, a constant, a function of plain code. Raises like `dataclass_of`."""
    found = repo.module(module)
    if found is None:
        raise LookupError(f"there is no module {module}")
    files = [m.file for m in repo.closure(module, OURS)] if module not in repo.memo else []
    digest = repo.memo.setdefault(module, repo.sources(found.file, *files))
    key = (digest, module, name)
    if key not in _made:
        _made[key] = _Maker(repo, digest).value(module, name)
    return _made[key]


def is_dataclass_node(node: ast.AST) -> bool:
    """Whether a class statement is decorated with @dataclass."""
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)


class _Maker:
    def __init__(self, repo: Repo, digest: str) -> None:
        self.repo = repo
        self.prefix = PREFIX + hashlib.sha256(f"{repo.root}{digest}".encode()).hexdigest()[:12]
        self.modules: dict[str, types.ModuleType] = {}

    def value(self, module_name: str, name: str) -> Any:
        module = self.repo.module(module_name)
        if module is None or name not in module.names:
            raise LookupError(f"{module_name} does not define {name}")
        space = self._space(module)
        if name not in vars(space):
            self._bind(module, name, space)
        return vars(space)[name]

    def _space(self, module: Module) -> types.ModuleType:
        if module.name not in self.modules:
            made = types.ModuleType(f"{self.prefix}.{module.name}")
            self.modules[module.name] = sys.modules[made.__name__] = made  # get_type_hints looks there
        return self.modules[module.name]

    def _bind(self, module: Module, name: str, space: types.ModuleType) -> None:
        node = module.names[name]
        if isinstance(node, ast.Import):
            alias = next(a for a in node.names if (a.asname or a.name.split(".")[0]) == name)
            vars(space)[name] = _library(alias.name if alias.asname else alias.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            vars(space)[name] = self._imported(module, node, name)
        else:
            vars(space)[name] = None  # a name that its own statement mentions
            for used in {n.id for n in walk(node) if isinstance(n, ast.Name)} | _quoted(node):
                if used in module.names and used not in vars(space):
                    self._bind(module, used, space)
            future = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
            tree = ast.fix_missing_locations(ast.Module([future, node], []))
            exec(compile(tree, module.file, "exec", dont_inherit=True), vars(space))

    def _imported(self, module: Module, node: ast.ImportFrom, name: str) -> Any:
        origin = module.absolute(node)
        original = next(a.name for a in node.names if (a.asname or a.name) == name)
        target = self.repo.module(origin)
        if target is not None and original in target.names:
            statement = target.names[original]
            heavy = isinstance(statement, ast.ClassDef) and not is_dataclass_node(statement)
            if heavy and not _plain_base(statement):
                return (
                    Inert() if origin.split(".")[0] != "engine" else getattr(importlib.import_module(origin), original)
                )
            return self.value(origin, original)
        library = _library(origin)
        return getattr(library, original)


def _plain_base(node: ast.stmt) -> bool:
    """A class without bases other than enums and errors can be executed as it stands."""
    return isinstance(node, ast.ClassDef) and all(
        "Enum" in ast.unparse(b) or "Error" in ast.unparse(b) for b in node.bases
    )


def _quoted(node: ast.AST) -> set[str]:
    strings = {n.value for n in walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {text for text in strings if text.isidentifier()}


def _library(name: str) -> Any:
    root = name.split(".")[0]
    if root in sys.stdlib_module_names:
        return importlib.import_module(name)
    return Inert()
