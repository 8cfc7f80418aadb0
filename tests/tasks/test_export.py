"""scripts/export.py: what was written answers as the model does, without this project, for any number of rows."""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import UsageError
from tests.conftest import ROOT, Result, run_script
from tests.train.conftest import place, texts, train  # noqa: F401  fixtures

IN_FORKS = True  # torch.export starts threads, and no later fork of the same process could train

RECURSIVE = (
    "--config-name=cfg_pretrain_sudoku_4x4",
    "+debug=tiny",
    "device=cpu",
    "arch.eval_halting=latched",
    "arch.puzzle_emb_ndim=32",
    "arch.puzzle_emb_len=0",
    "run_dir=run",
    "verify=off",
)


def export(folder: Path, run: str, kind: str, out: str) -> Result:
    return run_script("scripts/export", run, "--format", kind, "--out", out, cwd=folder)


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A working directory with one finished run of pretrain.py, `run`."""
    folder = tmp_path_factory.mktemp("puzzles")
    (folder / "data").symlink_to(tiny_data)
    done = run_script("pretrain", *RECURSIVE, cwd=folder)
    assert done.code == 0, done.output
    return folder


def call_as_documented(folder: Path, name: str) -> int:
    """How many outputs the code of a model card gets."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / name / "README.md").read_text(), re.DOTALL)
    space: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(code, space)
    return len(space["outputs"])


@pytest.fixture
def libraries() -> None:
    """A fixture, since a test of this module cannot be skipped from inside of its child."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason="pip install -e '.[onnx]'")


def test_onnx_and_its_driver_repeat_the_evaluation_without_torch(puzzles: Path, libraries: None) -> None:
    done = export(puzzles, "run", "onnx", "exported")
    assert done.code == 0, done.output
    assert "checked     16 held-out puzzles" in done.output
    assert "16 of 16 final answers are the model's" in done.output
    files = {path.name for path in (puzzles / "exported").iterdir()}
    assert files == {"README.md", "evaluate.py", "export.json", "model.onnx", "puzzle_table.npy", "start.npz"}
    assert call_as_documented(puzzles, "exported") == len(
        json.loads((puzzles / "exported/export.json").read_text())["outputs"]
    )
    banned = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    program = [sys.executable, "-P", "-c", banned + "runpy.run_path(sys.argv[0], run_name='__main__')"]
    data = "data/debug-sudoku-4x4"
    asked = subprocess.run(
        [*program, "exported/evaluate.py", data, "--batch-size", "100"], cwd=puzzles, capture_output=True, text=True
    )
    assert asked.returncode == 0, asked.stderr
    answered = json.loads(asked.stdout)
    argv = ("run", "--max-examples", "all", "--device", "cpu", "--json", "evaluation.json")
    done = run_script("scripts/evaluate", *argv, cwd=puzzles)
    assert done.code == 0, done.output
    results = json.loads((puzzles / "evaluation.json").read_text())["results"]
    assert answered["examples"] == results["examples"]
    assert answered["exact_accuracy"] == results["exact_accuracy"]
    assert 0 < answered["accuracy"] < 1
    assert answered["accuracy"] == pytest.approx(results["accuracy"], abs=1e-6)


def test_the_program_of_a_step_takes_any_number_of_rows_and_what_cannot_be_done_is_refused(puzzles: Path) -> None:
    done = export(puzzles, "run", "export", "program")
    assert done.code == 0, done.output
    about = json.loads((puzzles / "program/export.json").read_text())
    assert about["checked"]["largest_difference"] <= 1e-4
    assert list(about["inputs"]) == ["inputs", "puzzle_embedding", *about["state"]]
    assert about["inputs"]["inputs"] == {"dtype": "int32", "shape": ["rows", about["seq_len"]]}
    start = np.load(puzzles / "program/start.npz")
    module = torch.export.load(puzzles / "program/model.pt2").module()
    for rows in (1, 5):
        state = [torch.from_numpy(start[name]).expand(rows, -1, -1) for name in about["state"]]
        row = torch.from_numpy(np.load(puzzles / "program/puzzle_table.npy"))[:1].expand(rows, -1)
        outputs = module(torch.zeros(rows, about["seq_len"], dtype=torch.int32), row, *state)
        assert outputs[about["outputs"].index("logits")].shape == (rows, about["seq_len"], about["vocab_size"])
    assert call_as_documented(puzzles, "program") == len(about["outputs"])
    again = export(puzzles, "run", "export", "program")
    assert again.code == 2
    assert again.output.splitlines()[-1] == "error: program exists already: remove it or choose another folder"
    inside = export(puzzles, "run", "export", "program/model.pt2/x")
    assert "program/model.pt2/x cannot be written" in inside.output
    assert "program/model.pt2 is not a folder" in inside.output


def test_a_language_model_takes_any_number_of_rows_and_tokens(place: Path) -> None:  # noqa: F811
    train(place, "arch.pos_encodings=rope")
    done = export(place, "out/r", "export", "exported")
    assert done.code == 0, done.output
    assert json.loads((place / "exported/export.json").read_text())["checked"]["largest_difference"] <= 1e-4
    module = torch.export.load(place / "exported/model.pt2").module()
    for rows, length in ((1, 3), (4, 7)):
        assert module(torch.zeros(rows, length, dtype=torch.int64))[0].shape[:2] == (rows, length)


def test_a_model_that_draws_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.recursive_reasoning import graph
    from tests.models.test_noise import model

    run = SimpleNamespace(task=SimpleNamespace(model=model(chains=2)), opened=None)
    monkeypatch.setattr(graph, "load_puzzle_run", lambda *args, **options: run)
    with pytest.raises(UsageError, match="runs/r draws random numbers in every step"):
        graph.export_graph(Namespace(checkpoint="runs/r", weights=None))


def test_missing_libraries_and_low_precision_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.graphs import require_format, require_precision

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"--format onnx needs onnx: pip install -e '\.\[onnx\]'"):
        require_format("onnx")
    with pytest.raises(UsageError, match="computes in bfloat16"):
        require_precision("run", torch.bfloat16)


def test_the_driver_refuses_what_it_cannot_use_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = str(ROOT / "tasks/recursive_reasoning/onnx_driver.py")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/meta.json").write_text("{}")
    for library, words, says in (
        (None, [], "error: needs numpy and onnxruntime: pip install numpy onnxruntime"),
        (ModuleType("onnxruntime"), ["nope"], "error: nope is not a data set of puzzles: it has no test/dataset.json"),
        (
            ModuleType("onnxruntime"),
            [str(tmp_path / "text")],
            "text is not a data set of puzzles: it has no test/dataset",
        ),
        (ModuleType("onnxruntime"), ["x", "--steps", "0"], "argument --steps: '0': expected a whole number of at leas"),
        (ModuleType("onnxruntime"), ["x", "--batch-size", "-1"], "argument --batch-size: '-1': expected a whole numbe"),
    ):
        monkeypatch.setitem(sys.modules, "onnxruntime", library)
        monkeypatch.setattr(sys, "argv", [driver, *words])
        with pytest.raises(SystemExit) as refused:
            runpy.run_path(driver, run_name="__main__")
        assert refused.value.code == 2
        assert says in capsys.readouterr().err
