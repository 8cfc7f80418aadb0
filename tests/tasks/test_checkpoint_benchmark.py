"""scripts/bench_checkpoint.py at a size that takes seconds: both ways of saving, in turns, in one run."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import run_script


def test_a_small_table(tmp_path: Path) -> None:
    asked = ("--identifiers", "500", "--width", "64", "--rounds", "1", "--folder", str(tmp_path), "--json", "f.json")
    done = run_script("scripts/bench_checkpoint", *asked, cwd=tmp_path)
    assert done.code == 0, done.output
    assert "500 identifiers x 64: checkpoint 0.00 GB" in done.output
    assert "| waited for | " in done.output
    assert "| beside | " in done.output
    figures = json.loads((tmp_path / "f.json").read_text())
    assert {mode: len(each["steps_meanwhile"]) for mode, each in figures["modes"].items()} == {
        "waited for": 1,
        "beside": 1,
    }
    assert figures["modes"]["waited for"]["steps_meanwhile"] == [0]
    assert figures["touch"]["state_bytes"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]
