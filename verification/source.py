"""Reading code without running it: modules, classes with their bases, methods, names that are re-exported.

Nothing examined is imported here: a `Repo` parses the files below its root, so that it can look at any copy of the
repository, also at one that cannot be imported. Parsed files are kept by content.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.io import did_you_mean

SLOTS = ("models", "losses", "evaluators", "dataset", "tasks")


@functools.lru_cache(maxsize=512)
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


def walk(tree: ast.AST) -> tuple[ast.AST, ...]:
    """`ast.walk`, remembered by the tree: parsed files are never changed, and a hundred commands ask the same."""
    kept: tuple[ast.AST, ...] | None = tree.__dict__.get("_walked")
    if kept is None:
        kept = tree.__dict__["_walked"] = tuple(ast.walk(tree))
    return kept


@dataclass(frozen=True, eq=False)
class Module:
    """One parsed file. `names` maps what its top level binds to the statement that does."""

    name: str
    file: str
    text: str = field(repr=False)
    tree: ast.Module = field(repr=False)
    package: bool = False
    names: Mapping[str, ast.stmt] = field(repr=False, default_factory=dict)

    def absolute(self, node: ast.ImportFrom) -> str:
        """The dotted module that a `from ... import` names, relative forms resolved."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + (1 if self.package else 0)]
        return ".".join([*parts, *([node.module] if node.module else [])])


@dataclass(frozen=True, eq=False)
class ClassInfo:
    """A class, where it is written, and its bases in method resolution order (depth first, ours only)."""

    name: str
    module: Module
    node: ast.ClassDef
    bases: tuple[ClassInfo, ...] = ()
    foreign: tuple[str, ...] = ()
    """Bases outside the repository, as written: `nn.Module`."""

    @property
    def file(self) -> str:
        return self.module.file

    @property
    def line(self) -> int:
        return self.node.lineno

    @functools.cached_property
    def mro(self) -> list[ClassInfo]:
        """This class, then its bases, each once."""
        found: dict[tuple[str, str], ClassInfo] = {}
        for cls in [self, *(ancestor for base in self.bases for ancestor in base.mro)]:
            found.setdefault((cls.module.name, cls.name), cls)
        return list(found.values())

    @property
    def all_foreign(self) -> set[str]:
        """Foreign bases of the whole ancestry."""
        return {name for cls in self.mro for name in cls.foreign}

    def method(self, name: str) -> tuple[ast.FunctionDef, ClassInfo] | None:
        """The method that an instance would use, with the class that writes it."""
        for cls in self.mro:
            for node in cls.node.body:
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    return node, cls
        return None

    def variable(self, name: str) -> tuple[Any, ClassInfo, int] | None:
        """A class variable with a literal value: (value, class that sets it, line)."""
        for cls in self.mro:
            for node in cls.node.body:
                target: ast.expr | None = node.target if isinstance(node, ast.AnnAssign) else None
                target = node.targets[0] if isinstance(node, ast.Assign) else target
                value = getattr(node, "value", None)
                if isinstance(target, ast.Name) and target.id == name and value is not None:
                    return literal(value, default=value), cls, node.lineno
        return None


@dataclass(eq=False)
class Repo:
    """The repository at `root`, as files. `overlay` holds texts by relative path that take the place of files."""

    root: Path
    overlay: Mapping[str, str] = field(default_factory=dict)
    local_data: bool = True
    """Whether data sets on this machine are looked at; else each is what the catalogue says of it."""
    _modules: dict[str, Module | None] = field(default_factory=dict)
    _classes: dict[tuple[str, str], ClassInfo | str] = field(default_factory=dict)
    _texts: dict[str, str | None] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)
    """What checks keep for the next command on the same files."""

    def text(self, file: str) -> str | None:
        """The content of a file by its relative path; None where there is none."""
        if file not in self._texts:
            path = self.root / file
            if file in self.overlay:
                self._texts[file] = self.overlay[file]
            else:
                self._texts[file] = path.read_text(encoding="utf-8") if path.is_file() else None
        return self._texts[file]

    def module(self, name: str) -> Module | None:
        """A module by dotted name, None where there is none. Raises SyntaxError."""
        if name not in self._modules:
            self._modules[name] = self._load(name)
        return self._modules[name]

    def _load(self, name: str) -> Module | None:
        base = name.replace(".", "/")
        for file, package in ((f"{base}.py", False), (f"{base}/__init__.py", True)):
            text = self.text(file) if name and all(part.isidentifier() for part in name.split(".")) else None
            if text is not None:
                tree = _parse(text)
                return Module(name, file, text, tree, package, dict(_bindings(tree.body)))
        return None

    def find_class(self, module: str, name: str) -> ClassInfo | str:
        """The class that `module` defines or re-exports under `name`, or the reason why there is none."""
        key = (module, name)
        if key not in self._classes:
            self._classes[key] = f"{module} and {name} import each other"  # while it is being looked for
            self._classes[key] = self._find(module, name)
        return self._classes[key]

    def _find(self, module_name: str, name: str) -> ClassInfo | str:
        module = self.module(module_name)
        if module is None:
            return f"there is no module {module_name}"
        node = module.names.get(name)
        if isinstance(node, ast.ClassDef):
            return self._class(module, node)
        if isinstance(node, ast.ImportFrom):
            original = next(a.name for a in node.names if (a.asname or a.name) == name)
            return self.find_class(module.absolute(node), original)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):  # Name = Other
            return self.find_class(module_name, node.value.id)
        public = [
            n for n, s in module.names.items() if isinstance(s, ast.ClassDef | ast.ImportFrom) and n[:1].isupper()
        ]
        return f"{module_name} has no class {name}: {did_you_mean(name, public)}"

    def _class(self, module: Module, node: ast.ClassDef) -> ClassInfo:
        bases, foreign = [], []
        for expression in node.bases:
            expression = expression.value if isinstance(expression, ast.Subscript) else expression
            found = self.named_class(module, expression)
            if isinstance(found, ClassInfo):
                bases.append(found)
            else:
                foreign.append(ast.unparse(expression))
        return ClassInfo(node.name, module, node, tuple(bases), tuple(foreign))

    def named_class(self, module: Module, expression: ast.expr) -> ClassInfo | None:
        """The class of ours that an expression (`Name`, `package.module.Name`) means inside `module`."""
        if isinstance(expression, ast.Name):
            node = module.names.get(expression.id)
            if isinstance(node, ast.ClassDef | ast.ImportFrom | ast.Assign):
                if isinstance(node, ast.ImportFrom) and self.module(module.absolute(node)) is None:
                    return None
                found = self.find_class(module.name, expression.id)
                return found if isinstance(found, ClassInfo) else None
        if isinstance(expression, ast.Attribute):
            dotted = ast.unparse(expression.value)
            node = module.names.get(dotted.split(".")[0])
            if isinstance(node, ast.Import):
                alias = {a.asname: a.name for a in node.names if a.asname}
                found = self.find_class(alias.get(dotted, dotted), expression.attr)
                return found if isinstance(found, ClassInfo) else None
        return None

    def resolve(self, name: str, slot: str) -> tuple[str, str]:
        """`module@Class` in a slot -> (dotted module, class name); ValueError when it has not that form."""
        module, at, cls = str(name).partition("@")
        parts = module.split(".")
        if not at or not all(part.isidentifier() for part in [*parts, cls]):
            raise ValueError(f"{name!r} is not of the form module@Class")
        return ".".join(parts if parts[0] in SLOTS else [slot, *parts]), cls

    def modules_in(self, package: str) -> list[str]:
        """Dotted names of the modules below a package, without the package's own name."""
        folder = self.root / package
        names = [p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.py")]
        names += [f[len(package) + 1 : -3] for f in self.overlay if f.startswith(package + "/") and f.endswith(".py")]
        return sorted({n.removesuffix("/__init__").replace("/", ".") for n in names if n != "__init__"})

    def closure(self, module: str, packages: tuple[str, ...]) -> list[Module]:
        """`module` and everything of `packages` that it imports, directly or not."""
        key = ("closure", module, packages)
        if key not in self.memo:
            found: dict[str, Module] = {}
            pending = [module]
            while pending:
                current = self.module(pending.pop())
                if current is None or current.name in found:
                    continue
                found[current.name] = current
                names = _imports(current.text, current.name, current.package)
                pending += [n for n in names if n.split(".")[0] in packages and n not in found and self.module(n)]
            self.memo[key] = list(found.values())
        return self.memo[key]

    def sources(self, *files: str) -> str:
        """sha256 over files, in order of their names."""
        digest = hashlib.sha256()
        for file in sorted(files):
            digest.update(f"{file}\0{self.text(file)}\0".encode())
        return digest.hexdigest()


@functools.lru_cache(maxsize=512)
def _imports(text: str, name: str, package: bool) -> tuple[str, ...]:
    """Dotted names that a module imports anywhere: modules, and `module.name` of from-imports."""
    module = Module(name, "", text, _parse(text), package)
    names: list[str] = []
    for node in walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            origin = module.absolute(node)
            names += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return tuple(dict.fromkeys(names))


def _bindings(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield (alias.asname or alias.name.split(".")[0]), node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for name in walk(target):
                    if isinstance(name, ast.Name):
                        yield name.id, node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node
        elif isinstance(node, ast.If | ast.Try):
            yield from _bindings([*node.body, *node.orelse])


# --- expressions ------------------------------------------------------------------------------------------------------


def literal(node: ast.AST | None, default: Any = None) -> Any:
    """The value of a literal expression, else `default`."""
    try:
        return ast.literal_eval(node)  # type: ignore[arg-type]
    except (ValueError, TypeError, SyntaxError, MemoryError):
        return default


def called(node: ast.Call) -> str:
    """The last name of what is called: `self.inner.embed(x)` -> embed."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def calls(tree: ast.AST, *names: str) -> list[ast.Call]:
    """Calls in source order, all of them or those of the given last names."""
    found = [node for node in walk(tree) if isinstance(node, ast.Call) and (not names or called(node) in names)]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def mentions(tree: ast.AST | None, *names: str) -> bool:
    """Whether one of the identifiers (variables or attributes) occurs in an expression."""
    if tree is None:
        return False
    return any(
        (isinstance(node, ast.Name) and node.id in names) or (isinstance(node, ast.Attribute) and node.attr in names)
        for node in walk(tree)
    )


def parameters(function: ast.FunctionDef) -> list[str]:
    """Names of all parameters, `self` included."""
    arguments = function.args
    return [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]


def reachable(cls: ClassInfo, start: str) -> dict[str, tuple[ast.FunctionDef, ClassInfo]]:
    """Methods of `cls` that `start` calls on self, directly or not, itself included."""
    found: dict[str, tuple[ast.FunctionDef, ClassInfo]] = {}
    pending = [start]
    while pending:
        name = pending.pop()
        method = None if name in found else cls.method(name)
        if method is None:
            continue
        found[name] = method
        for node in walk(method[0]):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("self", "cls")
            ):
                pending.append(node.attr)
    return found


def parents_of(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    """child -> parent for every node below `tree`."""
    kept: dict[ast.AST, ast.AST] | None = tree.__dict__.get("_parents")
    if kept is None:
        kept = {child: parent for parent in walk(tree) for child in ast.iter_child_nodes(parent)}
        tree.__dict__["_parents"] = kept
    return kept


def ancestors(node: ast.AST, parents: Mapping[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    """The nodes around `node`, from the inside out."""
    while node in parents:
        node = parents[node]
        yield node


def attribute_reads(tree: ast.AST, skip: frozenset[ast.AST] = frozenset()) -> set[str]:
    """Names of attributes that are read, and string arguments of getattr; not below the nodes in `skip`."""
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if node in skip:
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if isinstance(node, ast.Call) and called(node) == "getattr" and len(node.args) > 1:
            name = literal(node.args[1])
            if isinstance(name, str):
                found.add(name)
        pending.extend(ast.iter_child_nodes(node))
    return found
