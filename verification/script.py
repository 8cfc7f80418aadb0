"""What an entry script and its family declare, read from their text: decorator, schema, requirements, task."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from verification.schemas import UNREADABLE, value_of
from verification.source import ClassInfo, Module, Repo, called, calls, literal, walk


@dataclass
class Script:
    """One entry script. Lines are 0 where the thing is not there."""

    module: Module
    build: Module
    """Where the run is built: the family's build.py, or the script itself."""
    family: Module
    """Where schema and requirements stand: the family's family.py, or the script itself."""
    decorators: list[ast.Call] = field(default_factory=list)
    """Every @hydra.main(...)."""
    launch: ast.FunctionDef | None = None
    config_path: str = "config"
    config_name: str = ""
    decorator_line: int = 0
    schema: tuple[str, str] | None = None
    """(module, class) that SCHEMA names."""
    aliases: dict[str, str] = field(default_factory=dict)
    rewrite: Callable[..., list[str]] | None = None
    """What the script itself makes of the translated words (`main(..., rewrite=...)`)."""
    requires: dict[str, Any] = field(default_factory=dict)
    """FAMILY, DATA_MODE, ... of `require(...)` calls, or of TRAINING_PATH."""
    requires_line: int = 0
    task: ClassInfo | str | None = None
    data_classes: list[tuple[ClassInfo, int]] = field(default_factory=list)

    @property
    def file(self) -> str:
        return self.module.file

    @property
    def stem(self) -> str:
        return self.module.file.rpartition("/")[2].removesuffix(".py")

    def function(self, name: str) -> ast.FunctionDef | None:
        """A function of the top level of the script or of what builds its runs."""
        nodes = (self.module.names.get(name), self.build.names.get(name))
        return next((node for node in nodes if isinstance(node, ast.FunctionDef)), None)


def read_script(repo: Repo, file: str) -> Script:
    """Read `file`. Raises SyntaxError; LookupError where there is no such file."""
    module = repo.module(file.removesuffix(".py").replace("/", "."))
    if module is None or module.file != file:
        raise LookupError(f"there is no {file}")
    script = Script(module, *_parts(repo, module))
    for node in module.tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in ("hydra.main", "main"):
                script.decorators.append(decorator)
                script.launch = node
    if script.decorators:
        decorator = script.decorators[0]
        given = {k.arg: literal(k.value) for k in decorator.keywords}
        given |= dict(zip(("config_path", "config_name"), map(literal, decorator.args), strict=False))
        script.config_path = given.get("config_path") or "."
        script.config_name = given.get("config_name") or ""
        script.decorator_line = decorator.lineno
    if script.family is script.module:
        _read_constants(repo, script)
    else:
        _read_family(repo, script)
    _read_imports(repo, script)
    return script


def _parts(repo: Repo, module: Module) -> tuple[Module, Module]:
    """(what builds the script's runs, what declares its schema): modules of its family, or the script itself."""
    node = module.names.get("FAMILY")
    family = repo.module(module.absolute(node)) if isinstance(node, ast.ImportFrom) else None
    if family is None:
        return module, module
    return repo.module(f"{family.name.rpartition('.')[0]}.build") or module, family


def _read_family(repo: Repo, script: Script) -> None:
    """From `FAMILY = Family(...)`."""
    node = script.family.names.get("FAMILY")
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        raise LookupError(f"{script.family.file} declares no FAMILY")
    given = {keyword.arg: keyword.value for keyword in node.value.keywords}
    if isinstance(schema := given.get("schema"), ast.Name):
        found = repo.find_class(script.family.name, schema.id)
        script.schema = (found.module.name, found.name) if isinstance(found, ClassInfo) else None
    if isinstance(aliases := given.get("aliases"), ast.Name):
        script.aliases = _value(repo, script, aliases.id)
    elif aliases is not None:
        script.aliases = literal(aliases, default={})
    if isinstance(rewrite := given.get("rewrite"), ast.Name):
        script.rewrite = _value(repo, script, rewrite.id)
    if "requires" in given:
        script.requires, script.requires_line = dict(literal(given["requires"], default={})), given["requires"].lineno


def _read_constants(repo: Repo, script: Script) -> None:
    names = script.module.names
    schema = names.get("SCHEMA")
    if isinstance(schema, ast.Assign) and isinstance(schema.value, ast.Name):
        found = repo.find_class(script.module.name, schema.value.id)
        if isinstance(found, ClassInfo):
            script.schema = (found.module.name, found.name)
    aliases = names.get("ALIASES")
    if isinstance(aliases, ast.Assign):
        script.aliases = literal(aliases.value, default={})
    elif aliases is not None:
        script.aliases = _value(repo, script, "ALIASES")
    for call in calls(script.module.tree, "main"):
        named = next((k.value for k in call.keywords if k.arg == "rewrite"), None)
        if isinstance(named, ast.Name) and named.id in names:
            script.rewrite = _value(repo, script, named.id)
    for call in calls(script.module.tree, "require"):
        script.requires |= {k.arg: literal(k.value) for k in call.keywords if k.arg and k.arg.isupper()}
        script.requires_line = call.lineno
    declared = names.get("TRAINING_PATH")
    if isinstance(declared, ast.Assign):
        script.requires_line = declared.lineno
        for key, value in (literal(declared.value, default={}) or {}).items():
            script.requires[{"arch_family": "FAMILY"}.get(key, key.upper())] = value


def _value(repo: Repo, script: Script, name: str) -> Any:
    try:
        return value_of(repo, script.family.name, name)
    except UNREADABLE as error:
        raise LookupError(f"{name} of {script.family.file} cannot be read: {error!r}") from error


def _read_imports(repo: Repo, script: Script) -> None:
    used = {called(call) for call in calls(script.build.tree)}
    names = {n.id for n in walk(script.build.tree) if isinstance(n, ast.Name)}
    for node in walk(script.build.tree):
        if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
            continue
        root = node.module.split(".")[0]
        for alias in node.names:
            if root not in ("tasks", "dataset") or not alias.name[:1].isupper():
                continue
            found = repo.find_class(node.module, alias.name)
            if root == "dataset" and isinstance(found, ClassInfo) and (alias.asname or alias.name) in names:
                script.data_classes.append((found, node.lineno))
            if root == "tasks" and (alias.asname or alias.name) in used:
                is_task = isinstance(found, str) or found.method("micro_batches") or found.method("loss")
                script.task = found if is_task else script.task
