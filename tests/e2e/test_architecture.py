"""The tables of docs/architecture.md are what the code says: packages with sizes and imports, engine/ in reading order.

After a change: `python -m tests.e2e.test_architecture` writes them anew. Sizes may drift by a quarter before that is needed.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.conftest import ROOT
from tests.metrics.sources import Size, packages, python_files, size
from tests.test_house_rules import ALLOWED

PAGE = ROOT / "docs/architecture.md"
TABLE = re.compile(r"(<!-- table: (packages|engine files) -->\n)(.*?)(<!-- end -->)", re.S)
DRIFT = 0.25


def first_sentence(path: Path) -> str:
    """Of a module's docstring, in one line."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    return re.split(r"\.(?: |$)", text)[0].replace("|", "\\|")


@cache
def size_of(place: Path) -> Size:
    """Of a file, or of all in a folder."""
    return size(python_files(place) if place.is_dir() else [place])


def measured(folder: Path, old: tuple[int, int]) -> tuple[int, int]:
    """Files and lines of code, these in hundreds; what the page has, where both are near enough."""
    now = size_of(folder)
    near = abs(old[0] - now.files) <= max(2, DRIFT * now.files) and abs(old[1] - now.code) <= max(100, DRIFT * now.code)
    return old if near else (now.files, round(now.code, -2))


def package_table(body: str) -> str:
    old = {
        name: (int(files), int(code.replace(",", "")))
        for name, files, code in re.findall(r"\| `(\w+)/` \| (\d+) \| ([\d,]+) ", body)
    }
    lines = ["| package | files | lines of code | what it is | may import of ours |", "|---|---|---|---|---|"]
    for name in packages(ROOT):
        files, code = measured(ROOT / name, old.get(name, (0, 0)))
        allowed = ", ".join(sorted(ALLOWED[name])) if name in ALLOWED else "all; nobody imports it"
        lines.append(f"| `{name}/` | {files} | {code:,} | {first_sentence(ROOT / name / '__init__.py')} | {allowed} |")
    return "\n".join(lines) + "\n"


def engine_table(body: str) -> str:
    """The order is the page's, made by hand; new files come last."""
    files = [path.relative_to(ROOT).as_posix() for path in python_files(ROOT / "engine") if size_of(path).code]
    ordered = [name for name in re.findall(r"^\| `([\w/]+\.py)`", body, re.M) if name in files]
    ordered += [name for name in files if name not in ordered]
    rows = [f"| `{name}` | {first_sentence(ROOT / name)} |" for name in ordered]
    return "\n".join(["| file | in one line |", "|---|---|", *rows]) + "\n"


TABLES: dict[str, Callable[[str], str]] = {"packages": package_table, "engine files": engine_table}


def generated(text: str) -> str:
    return TABLE.sub(lambda match: f"{match[1]}{TABLES[match[2]](match[3])}{match[4]}", text)


def test_the_tables_are_what_the_code_says() -> None:
    text = PAGE.read_text()
    assert {name for _, name, *_ in TABLE.findall(text)} == TABLES.keys()
    assert text == generated(text), f"{PAGE.name} is stale: python -m tests.e2e.test_architecture"


def test_a_stale_table_is_noticed() -> None:
    text = PAGE.read_text()
    assert generated(text.replace("Reading runs", "Reading files", 1)) == text
    assert generated(re.sub(r"\| `engine/optim/adam.py` .*", "| `engine/optim/adam.py` | fast |", text)) == text
    far = re.sub(r"\| `engine/` \| \d+ \| [\d,]+ ", "| `engine/` | 2 | 100 ", text)
    assert far != text
    assert generated(far) != far


if __name__ == "__main__":
    PAGE.write_text(generated(PAGE.read_text()), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: tables written\n")
