"""scripts/doctor.py: facts that agree with torch and the disk, an answer where nothing is installed, one line a fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.loop import compiling
from reports.machine import doctor, installation, places
from tests.conftest import ROOT, run_script


def test_facts_of_this_machine(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "compiler_fault", lambda *_: "no g++")  # trying takes seconds (forks inherit it)
    before = sorted(workplace.rglob("*"))
    done = run_script("scripts/doctor", "--json", cwd=workplace)
    assert done.code == 0, done.output
    facts = json.loads(done.output)
    version = facts["packages"]["torch"]["version"]  # of some wheels without the build (+cu130)
    assert version in (torch.__version__, torch.__version__.partition("+")[0])
    assert facts["torch"]["device"] == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert "math" in facts["torch"]["attention"]["sdpa"]
    assert facts["torch"]["compiler"] == {"fault": "no g++"}
    assert facts["problems"] == []
    facts_of_set = next(one for one in facts["data"]["found"] if one["path"].endswith("debug-sudoku-4x4"))
    card = json.loads((workplace / "data/debug-sudoku-4x4/card.json").read_text())
    assert facts_of_set["content_hash"] == card["content_hash"]
    assert "--output-dir data/maze-30x30-hard-1k" in facts["data"]["missing"]["maze-30x30-hard-1k"]
    assert sorted(workplace.rglob("*")) == before  # nothing is left behind


def test_the_text_has_every_fact_and_no_home_folder(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HOME", str(Path(sys.executable).parent))
    text = doctor.as_text(doctor.examine(compiler=False))
    labels = {line[:12].strip() for line in text.splitlines()}
    expected = {"loopforge", "python", "system", "packages", "torch", "device", "attention", "compiler", "disk", "data"}
    assert expected | {"to build", "extra", "verdict"} <= labels
    assert str(Path(sys.executable).parent) not in text
    assert "train 64 groups" in text


def test_an_answer_where_nothing_is_installed(tmp_path: Path) -> None:
    argv = [sys.executable, "-S", str(ROOT / "scripts/doctor.py")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert not done.stderr
    assert "torch MISSING" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("PROBLEM     torch, numpy, ")


def test_problems_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/broken").mkdir(parents=True)
    monkeypatch.setattr(places.os, "symlink", lambda *_: (_ for _ in ()).throw(OSError(1, "no links")))
    monkeypatch.setattr(doctor, "SMALLEST_FREE", 1 << 60)
    monkeypatch.setattr(installation.metadata, "version", lambda name: "1.3.9" if name == "hydra-core" else "1.0.0")
    problems = "\n".join(doctor.examine(compiler=False)["problems"])
    assert "torch 1.0.0 is not >=2.11" in problems
    assert "hydra-core" not in problems
    assert "refuses links" in problems
    assert "GB left" in problems
    assert "data/broken cannot be used: data/broken is not a data set" in problems


@pytest.mark.parametrize(
    ("version", "bounds", "expected"),
    [
        ("2.13.0+cpu", ">=2.11", True),
        ("2.9", ">=2.11", False),
        ("1.4.0", ">=1.3.5,<1.4", False),
        ("1.3.5", ">=1.3.5,<1.4", True),
        ("3.0", "", True),
    ],
)
def test_bounds_of_versions(version: str, bounds: str, expected: bool) -> None:
    assert installation._within(version, bounds) is expected


def test_each_extra_says_what_it_adds() -> None:
    assert list(installation.EXTRAS) == list(installation.extras())
