"""Runs that commit 695f7f2 wrote, before engine/ and tasks/ became packages: they resume and evaluate to the same figures.

tests/fixtures/runs_before_house has `feudal` (a manager's state among the latents) at step 8 and `mixture` (two data sets,
Muon) at step 10; NAME.after.jsonl is what that commit's own resume wrote. Their data are those of runs_before_repair.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, metrics, run_script

FIXTURES = ROOT / "tests/fixtures"
RUNS = {
    "feudal": ("pretrain", ("resume=true", "run_dir=feudal", "device=cpu", "max_steps=12"), 8),
    "mixture": ("train", ("--init_from=resume", "--out_dir=mixture", "device=cpu", "--max_steps=14"), 10),
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A working directory as that commit left it."""
    shutil.copytree(FIXTURES / "runs_before_house", tmp_path, symlinks=True, dirs_exist_ok=True)
    shutil.copytree(FIXTURES / "runs_before_repair/data", tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("name", RUNS)
def test_a_resume_gives_the_numbers_of_then(old: Path, name: str) -> None:
    script, argv, at = RUNS[name]
    result = run_script(script, *argv, cwd=old)
    assert result.code == 0, result.output
    assert f"resuming from step_{at}" in result.output
    assert "another path" not in result.output
    expected = [json.loads(line) for line in (old / f"{name}.after.jsonl").read_text().splitlines()]
    for line, then in zip(metrics(old / name), expected, strict=True):
        for key, value in then.items():
            if not key.startswith("time/") and isinstance(value, float):
                assert line[key] == pytest.approx(value, rel=1e-4, abs=1e-6), (line["step"], key)


@pytest.mark.parametrize(
    ("name", "metric", "value"),
    [("feudal", "feudal_loss", 0.6690372228622437), ("mixture", "eval/val_loss", 2.7527883052825928)],
)
def test_an_evaluation_gives_the_figure_of_then(old: Path, name: str, metric: str, value: float) -> None:
    result = run_script("scripts/evaluate", name, "--device=cpu", cwd=old)
    assert result.code == 0, result.output
    written = json.loads((old / name / f"evaluation_step_{RUNS[name][2]}.json").read_text())
    assert written["results"][metric] == pytest.approx(value, rel=1e-5)
