"""Runs that were moved, with their data or without, and are used from another folder: whole commands."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Result, run_forked, run_script, status_of
from tests.e2e.test_runs_before_repair import FIXTURES

ON_RUNS = {
    "evaluate": ("../moved/pretrain", "--device", "cpu"),
    "evaluate lm": ("../moved/train", "--device", "cpu"),
    "visualize": ("../moved/pretrain", "--device", "cpu", "--out", "x.png"),
    "sample": ("../moved/train", "--device", "cpu", "--max_new_tokens", "4"),
    "export_gpt2": ("../moved/train", "exported"),
    "verify_path": ("--checkpoint", "../moved/pretrain"),
    "verify_path lm": ("--checkpoint", "../moved/train"),
}
TOKENS_ONLY = ("sample", "export_gpt2")  # what they need is in the run, once a version that keeps it there has run
RESUMES = {
    "pretrain": ("resume=true", "run_dir=../moved/pretrain", "device=cpu", "max_steps=9"),
    "train": ("--init_from=resume", "--out_dir=../moved/train", "device=cpu", "--max_steps=11"),
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An empty working directory; runs of another machine and their data are beside it, under `moved`."""
    shutil.copytree(FIXTURES, tmp_path / "moved", symlinks=True)
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def _script(name: str, words: tuple[str, ...]) -> None:
    sys.argv = [str(ROOT / "scripts" / f"{name}.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def on_run(which: str, cwd: Path) -> Result:
    return run_forked(_script, which.split()[0], ON_RUNS[which], cwd=cwd)


@pytest.mark.parametrize("which", [name for name in ON_RUNS if "verify" not in name])
def test_a_command_finds_the_data_beside_the_run(here: Path, which: str) -> None:
    result = on_run(which, here)
    assert result.code == 0, result.output
    assert not (here / "data").exists()
    if which.startswith("evaluate"):
        run = here / ON_RUNS[which][0]
        assert [path.parent for path in run.glob("evaluation_step_*.json")] == [run]


@pytest.mark.parametrize("which", ON_RUNS)
def test_without_its_data_nothing_is_built(here: Path, which: str) -> None:
    """The stored config names a set that a launch would build; a command on a run says that it is not there."""
    shutil.rmtree(here.parent / "moved/data")
    result = on_run(which, here)
    assert "Traceback" not in result.output
    if "verify" not in which:
        assert result.code == 2, result.output
        assert "does not exist" in result.output.splitlines()[-1]
    assert not (here / "data").exists()
    assert not (here.parent / "moved/data").exists()


@pytest.mark.parametrize("script", RESUMES)
def test_a_resume_takes_the_data_of_the_working_directory(here: Path, script: str) -> None:
    """Without data it is refused, builds none and leaves the run as it was; with them it resumes."""
    run = here.parent / "moved" / script
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    refused = run_script(script, *RESUMES[script], cwd=here)
    assert refused.code == 2, refused.output
    assert "does not exist, and a run's config does not build data" in refused.output.splitlines()[-1]
    if script == "train":
        assert "dataset (of evaluate.py: --data) says where it was moved to" in refused.output.splitlines()[-1]
    assert list(here.iterdir()) == []
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before
    (here.parent / "moved/data").rename(here / "data")
    result = run_script(script, *RESUMES[script], cwd=here)
    assert result.code == 0, result.output
    assert status_of(run)["state"] == "done"
    assert [path.name for path in here.iterdir()] == ["data"]
    shutil.rmtree(here / "data")
    for which in TOKENS_ONLY if script == "train" else ():
        result = on_run(which, here)
        assert result.code == 0, result.output
