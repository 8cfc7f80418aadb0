"""What can be read off the sources of a tree: lines, imports and their circles, formatter exceptions.

The tree may be any commit of this repository, so nothing of it is imported and folders that it lacks count 0.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

NOT_OURS = {"fixtures", "__pycache__"}

# A top-level statement of verification/ belongs to a family if it mentions one of these words.
FAMILY_WORDS = {
    "language_model": ("language_model", "tokenizer", "vocab", "dataset_list", "multicontext", "multidataset"),
    "recursive_reasoning": ("recursive_reasoning", "halt", "puzzle", "carry", "manager", "feudal"),
    "feedback": ("feedback", "hypernetwork"),
    "etrm": ("etrm", "encoder", "demonstration"),
    "animal": ("animal", "prompt"),
}


@dataclass(frozen=True)
class Size:
    """Files, all their lines, and lines that are neither blank nor comment nor docstring."""

    files: int = 0
    lines: int = 0
    code: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.files + other.files, self.lines + other.lines, self.code + other.code)


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if not NOT_OURS & set(path.parts))


def packages(root: Path) -> list[str]:
    """The top-level folders with Python files, tests apart, in alphabetical order."""
    skipped = {"tests", "checkpoints", "data", "out", "multirun", "build"}
    folders = (path for path in root.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in skipped)
    return sorted(path.name for path in folders if next(path.glob("*.py"), None))


def code_lines(text: str) -> int:
    """Lines that are neither blank, nor comment, nor docstring."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for number, line in lines if line.strip() and line.strip()[0] != "#" and number not in prose)


def size(paths: Iterable[Path]) -> Size:
    total = Size()
    for path in paths:
        text = path.read_text()
        total += Size(1, len(text.splitlines()), code_lines(text))
    return total


def sizes(root: Path) -> dict[str, Size]:
    """The size of the scripts in the root, of each package, and of each folder of tests."""
    result = {"(root scripts)": size(sorted(root.glob("*.py")))}
    for package in packages(root):
        if paths := python_files(root / package):
            result[package] = size(paths)
    tests = root / "tests"
    result["tests (top level)"] = size(sorted(tests.glob("*.py")))
    for folder in sorted(path for path in tests.iterdir() if path.is_dir()):
        if paths := python_files(folder):
            result[f"tests/{folder.name}"] = size(paths)
    return result


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def project_modules(root: Path) -> dict[str, Path]:
    """Every module of the packages and of the root, by dotted name; tests are left out."""
    paths = [*sorted(root.glob("*.py")), *(path for name in packages(root) for path in python_files(root / name))]
    return {module_name(path, root): path for path in paths}


def imports(path: Path, name: str, modules: dict[str, Path], *, lazy: bool) -> set[str]:
    """The project's modules that `path` imports; `lazy` adds imports inside functions. TYPE_CHECKING never counts."""
    result: set[str] = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                result.update(alias.name for alias in node.names if alias.name in modules)
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    result.update({full} if full in modules else {base} & set(modules))
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                visit(node.orelse)
            elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                visit(ast.iter_child_nodes(node))

    visit(ast.parse(path.read_text()).body)
    return result - {name}


def import_graph(root: Path, *, lazy: bool = True) -> dict[str, set[str]]:
    """Module -> the modules it imports, over the whole project without tests."""
    modules = project_modules(root)
    return {name: imports(path, name, modules, lazy=lazy) for name, path in modules.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another in a circle (Tarjan's strongly connected components of size > 1)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def connect(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                connect(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            connect(node)
    return groups


def formatter_exceptions(root: Path) -> dict[str, int]:
    """`# fmt: skip` and `# fmt: off` comments by package, tests included, as top-level folder -> count."""
    counts: dict[str, int] = {}
    folders = [*packages(root), "tests"]
    paths = [*sorted(root.glob("*.py")), *(path for name in folders for path in python_files(root / name))]
    for path in paths:
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        number = sum(
            token.type == tokenize.COMMENT and ("fmt: skip" in token.string or "fmt: off" in token.string)
            for token in tokens
        )
        parts = path.relative_to(root).parts
        package = parts[0] if len(parts) > 1 else "(root scripts)"
        counts[package] = counts.get(package, 0) + number
    return {name: number for name, number in counts.items() if number}


def family_costs(root: Path) -> dict[str, tuple[int, int]]:
    """Family -> (lines of verify.py, rules.py and probes*.py in tasks/<family>/, lines about it inside verification/)."""
    result = {}
    for family, words in FAMILY_WORDS.items():
        folder = root / "tasks" / family
        own_lines = size([*folder.glob("verify.py"), *folder.glob("rules.py"), *folder.glob("probes*.py")]).lines
        shared = sum(lines_about(path.read_text(), words) for path in python_files(root / "verification"))
        result[family] = (own_lines, shared)
    return result


def lines_about(text: str, words: tuple[str, ...]) -> int:
    """Lines of the top-level functions, classes and tables of a module that mention one of `words`."""
    lines = text.splitlines()
    total = 0
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Expr):
            continue
        block = lines[node.lineno - 1 : node.end_lineno]
        if any(word in line.lower() for line in block for word in words):
            total += len(block)
    return total
