"""Sweeps of the tiny entry script, as processes, for test_sweep.py and test_sweep_results.py."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make_project(folder: Path) -> Path:
    """The tiny entry script in its own folder, with our base and sweep configs."""
    shutil.copytree(ROOT / "tests" / "engine" / "fixtures" / "tiny", folder / "tiny")
    for group in ("base", "sweep"):
        shutil.copytree(ROOT / "config" / group, folder / "tiny" / "config" / group)
    return folder / "tiny"


def start(folder: Path, script: str, *argv: str, **env: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1", **env}
    for name in ("HYDRA_FULL_ERROR", "RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, script, *argv],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ran(project: Path) -> list[dict]:
    lines = (project / "ran.jsonl").read_text().splitlines() if (project / "ran.jsonl").exists() else []
    return [json.loads(line) for line in lines]


def sweep(project: Path, *argv: str, **env: str) -> tuple[int, list[dict], str]:
    process = start(project, "tiny.py", *argv, **env)
    _, error = process.communicate()
    return process.returncode, ran(project), error


def results(folder: Path) -> list[dict[str, str]]:
    """The rows of the newest table."""
    newest = max(folder.glob("multirun/*/results.csv"), key=lambda path: path.stat().st_mtime_ns)
    return list(csv.DictReader(newest.open()))
