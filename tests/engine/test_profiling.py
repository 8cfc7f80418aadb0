"""The profiler: what it writes, when, and that training does not notice."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import metrics, run_script

RUN = (
    "--config-name=cfg_pretrain_sudoku_4x4",
    "+debug=tiny",
    "device=cpu",
    "project_name=p",
    "epochs=4",
    "max_steps=6",
    "verify=off",
)


def test_trace_and_table_of_the_asked_steps(workplace: Path) -> None:
    plain = run_script("pretrain", *RUN, "run_name=plain", cwd=workplace)
    result = run_script("pretrain", *RUN, "run_name=traced", "profile_steps=2", cwd=workplace)
    assert result.code == plain.code == 0, result.output
    run = workplace / "checkpoints/p/traced"
    assert sorted(path.name for path in (run / "profile").iterdir()) == [
        "operators_step_3-4.txt",
        "trace_step_3-4.json",
    ]
    events = json.loads((run / "profile/trace_step_3-4.json").read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sum(name.startswith("ProfilerStep#") for name in names) == 2
    assert any("Backward" in name for name in names)
    rows = [line for line in (run / "profile/operators_step_3-4.txt").read_text().splitlines() if "%" in line]
    assert 15 <= len(rows) <= 21
    assert metrics(run) == metrics(workplace / "checkpoints/p/plain")


def test_a_run_that_ends_sooner_says_so(workplace: Path) -> None:
    result = run_script("pretrain", *RUN, "run_name=a", "profile_steps=9", "max_steps=4", cwd=workplace)
    assert result.code == 0, result.output
    assert (workplace / "checkpoints/p/a/profile/trace_step_3-4.json").exists()
    result = run_script("pretrain", *RUN, "run_name=b", "profile_steps=1", "max_steps=2", cwd=workplace)
    assert result.code == 0, result.output
    assert "no profile: it would start at step 3" in result.output
    assert not (workplace / "checkpoints/p/b/profile").exists()
