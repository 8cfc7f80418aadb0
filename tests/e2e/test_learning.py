"""Slow: the recipe that learns does learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import run_script

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("arch", ["trm", "trm_singlez", "trm_hier6", "hrm", "transformers_baseline"])
def test_4x4_sudoku_is_learned_on_unseen_solution_grids(tmp_path: Path, arch: str) -> None:
    argv = ["--config-name=cfg_pretrain_sudoku_4x4", "device=cpu", "project_name=p", "run_name=r", f"arch={arch}"]
    result = run_script("pretrain", *argv, cwd=tmp_path)
    assert result.code == 0, result.output
    summary = json.loads((tmp_path / "checkpoints/p/r/summary.json").read_text())
    assert summary["name"] == "eval/exact_accuracy"
    assert summary["value"] >= (0.98 if arch == "trm" else 0.95)  # the recipe is tuned for TRM
    card = json.loads((tmp_path / "data/sudoku-4x4/card.json").read_text())
    assert card["counts"]["test"]["examples"] == 256


def test_a_6x6_board_is_learned(tmp_path: Path) -> None:
    argv = ["--config-name=cfg_pretrain_sudoku_6x6", "device=cpu", "threads=1", "project_name=p", "run_name=r"]
    result = run_script("pretrain", *argv, cwd=tmp_path)
    assert result.code == 0, result.output
    summary = json.loads((tmp_path / "checkpoints/p/r/summary.json").read_text())
    assert summary["results"]["eval/exact_accuracy"] >= 0.95
