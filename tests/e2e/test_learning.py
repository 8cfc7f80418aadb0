"""Slow: the recipe that learns does learn, and long chains of kills leave no trace."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

from tests.conftest import metrics, run_script
from tests.e2e.test_resume import RUN, interrupt, weights

pytestmark = pytest.mark.slow


def test_4x4_sudoku_is_learned_on_unseen_solution_grids(tmp_path: Path) -> None:
    argv = ["--config-name=cfg_pretrain_sudoku_4x4", "device=cpu", "project_name=p", "run_name=r"]
    result = run_script("pretrain", *argv, cwd=tmp_path)
    assert result.code == 0, result.output
    summary = json.loads((tmp_path / "checkpoints/p/r/summary.json").read_text())
    assert summary["name"] == "eval/exact_accuracy"
    assert summary["value"] >= 0.98
    card = json.loads((tmp_path / "data/sudoku-4x4/card.json").read_text())
    assert card["counts"]["test"]["examples"] == 256


@pytest.mark.parametrize("seed", range(4))
def test_ten_kills_in_a_row(tmp_path: Path, tiny_data: Path, seed: int) -> None:
    folders = {}
    for name in ("whole", "killed"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "data").symlink_to(tiny_data)
    assert run_script("pretrain", *RUN, cwd=folders["whole"]).code == 0
    order = random.Random(seed)
    for _ in range(10):
        code, output = interrupt(folders["killed"], signal.SIGKILL, order.randint(1, 14))
        if code == 0:  # it was faster than the kill
            break
        assert code == -signal.SIGKILL, output
    result = run_script("pretrain", *RUN, cwd=folders["killed"])
    assert result.code == 0, result.output
    runs = [folder / "checkpoints/p/r" for folder in folders.values()]
    assert metrics(runs[0]) == metrics(runs[1])
    assert weights(runs[0]) == weights(runs[1])
