"""Notebooks run from top to bottom without Jupyter, are valid, and are stored without outputs."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import ROOT, run_forked, run_script
from tests.e2e.test_docs import check

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[tuple[str, str]]:
    """(id, text) of the cells of this kind."""
    content = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [(cell["id"], "".join(cell["source"])) for cell in content if cell["cell_type"] == kind]


def execute(notebook: Path) -> None:
    """Every code cell in one namespace; what Jupyter would show of a cell's last expression is printed as its type."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for name, text in cells(notebook, "code"):
        tree = ast.parse(text, f"{notebook.name}:{name}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{notebook.name}:{name}", "exec"), space)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), f"{notebook.name}:{name}", "eval"), space)
            if isinstance(shown, Image.Image):
                print(f"[{name}] picture, {shown.width} x {shown.height}")


def check_output(output: str) -> None:
    assert re.search(r"TRM, [\d,]+ parameters, step \d+", output)
    assert re.search(r"step 1: \d+ cells wrong, halting probability [01]\.\d\d", output)
    assert re.search(r"step 2: .*z_H moves by [\d.]+%", output)
    assert re.search(r"step 1: [\d.]+% solved, 95 % interval", output)
    assert output.count("cells wrong") == 5  # one step, four ways of playing
    for name in ("picture", "halting", "learned"):
        assert f"[{name}] picture" in output


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_valid_and_stripped(notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert set(content) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    for cell in content["cells"]:
        own = {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert cell["cell_type"] in ("code", "markdown")
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | own
        assert re.fullmatch(r"[\w-]{1,64}", cell["id"])
        assert cell["metadata"] == {}
        assert all(isinstance(line, str) and line.endswith("\n") for line in cell["source"][:-1])
        if own:
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    names = [cell["id"] for cell in content["cells"]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_names_exists(notebook: Path) -> None:
    text = "\n".join(body for _, body in cells(notebook, "markdown"))
    for line in re.findall(r"`(python scripts/[^`]*)`", text):
        check(shlex.split(line))


def test_it_trains_what_make_demo_trains() -> None:
    [text] = [body for name, body in cells(ROOT / "notebooks/open_a_run.ipynb", "code") if name == "train"]
    words = re.findall(r'"([-\w]+=[\w/]+)"', text)
    [demo] = re.findall(r"^\t\$\(PY\) pretrain\.py (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert demo.replace("$(DEVICE)", "cpu").split() == words


def test_it_opens_a_run(tmp_path: Path) -> None:
    argv = ("--config-name=cfg_pretrain_sudoku_4x4_fast", "+debug=tiny", "project_name=demo", "run_name=sudoku_4x4")
    assert run_script("pretrain", *argv, "device=cpu", cwd=tmp_path).code == 0
    done = run_forked(execute, ROOT / "notebooks/open_a_run.ipynb", cwd=tmp_path)
    assert done.code == 0, done.output
    check_output(done.output)


@pytest.mark.slow
def test_it_trains_a_run_where_there_is_none(tmp_path: Path) -> None:
    done = run_forked(execute, ROOT / "notebooks/open_a_run.ipynb", cwd=tmp_path)
    assert done.code == 0, done.output
    check_output(done.output)
    solved = re.findall(r"step 8: ([\d.]+)% solved", done.output)
    assert float(solved[0]) > 90
