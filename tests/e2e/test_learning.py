"""Slow: the recipe that learns does learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import run_script

pytestmark = pytest.mark.slow


def learned(folder: Path, *argv: str) -> float:
    """The exact accuracy on held-out 4x4 boards at the end of a run."""
    result = run_script("pretrain", "device=cpu", "project_name=p", "run_name=r", *argv, cwd=folder)
    assert result.code == 0, result.output
    summary = json.loads((folder / "checkpoints/p/r/summary.json").read_text())
    assert summary["name"] == "eval/exact_accuracy"
    card = json.loads((folder / "data/sudoku-4x4/card.json").read_text())
    assert card["counts"]["test"]["examples"] == 256
    return float(summary["value"])


def test_4x4_sudoku_is_learned_on_unseen_solution_grids(tmp_path: Path) -> None:
    assert learned(tmp_path, "--config-name=cfg_pretrain_sudoku_4x4", "arch=trm") >= 0.98


@pytest.mark.parametrize(
    ("arch", "steps"), [("trm_singlez", 100), ("trm_hier6", 100), ("hrm", 200), ("transformers_baseline", 200)]
)
def test_other_architectures_learn_by_the_fast_recipe(tmp_path: Path, arch: str, steps: int) -> None:
    argv = ["--config-name=cfg_pretrain_sudoku_4x4_fast", f"arch={arch}", f"total_steps={steps}"]
    assert learned(tmp_path, *argv) >= 0.95


def test_a_6x6_board_is_learned(tmp_path: Path) -> None:
    argv = ["--config-name=cfg_pretrain_sudoku_6x6", "device=cpu", "threads=1", "project_name=p", "run_name=r"]
    result = run_script("pretrain", *argv, cwd=tmp_path)
    assert result.code == 0, result.output
    summary = json.loads((tmp_path / "checkpoints/p/r/summary.json").read_text())
    assert summary["results"]["eval/exact_accuracy"] >= 0.95
