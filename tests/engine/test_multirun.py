"""A sweep with Hydra's basic launcher: one process per job, numbered names, the worst code wins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.multirun import numbered

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(Path(__file__).parent / "fixtures" / "tiny", tmp_path / "tiny")
    shutil.copytree(ROOT / "config" / "base", tmp_path / "tiny" / "config" / "base")
    return tmp_path / "tiny"


def sweep(project: Path, *argv: str) -> tuple[int, list[dict], str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("HYDRA_FULL_ERROR", "RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "tiny.py", *argv], cwd=project, env=environment, capture_output=True, text=True
    )
    ran = project / "ran.jsonl"
    lines = ran.read_text().splitlines() if ran.exists() else []
    return done.returncode, [json.loads(line) for line in lines], done.stderr


def test_each_job_is_a_process_of_its_own_with_its_own_name(project: Path) -> None:
    code, ran, error = sweep(
        project, "-m", "--lr", "1,2", "--prompt", "a, b", "+run_name=x", "arch=large", "+debug=tiny"
    )
    assert (code, error) == (0, "")
    assert [(job["lr"], job["run_name"], job["prompt"], job["L_cycles"]) for job in ran] == [
        (1, "x_0", "a, b", 6),
        (2, "x_1", "a, b", 6),
    ]
    assert not list((project / "multirun").glob(".codes-*"))


def test_the_worst_code_wins_and_every_job_runs(project: Path) -> None:
    code, ran, error = sweep(project, "-m", "fail=run,usage,null")
    assert code == 2
    assert [job["fail"] for job in ran] == [None]
    assert error.splitlines() == ["error: went wrong", "error: cannot use it"]


def test_a_stopped_job_ends_the_sweep_with_3(project: Path) -> None:
    code, ran, _ = sweep(project, "-m", "fail=stop,null")
    assert (code, ran) == (3, [])


def test_only_explicit_names_are_numbered() -> None:
    assert numbered(["lr=1", "~seed", "prompt='a,b'"], 3) == ["lr=1", "~seed", "prompt='a,b'"]
    assert numbered(["run_name='a b'", "run_dir=out"], 3) == ["++run_name='a b_3'", "++run_dir=out_3"]
    assert numbered(["run_name=null"], 3) == ["run_name=null"]
    assert numbered(["lr=1"], 3, "named") == ["lr=1", "++run_name=named_3"]
    assert numbered(["++run_name=cli"], 3, "cli") == ["++run_name=cli_3"]
