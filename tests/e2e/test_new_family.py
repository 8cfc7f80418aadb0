"""A family in one folder and an architecture in one file, added to a copy of the project as CONTRIBUTING.md says.

The family is tests/fixtures/toy_family/: what it has to bring, and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.registry import FAMILIES
from tests.conftest import ROOT, free_port, last_checkpoint

TOY = ROOT / "tests/fixtures/toy_family"
PAGE = ROOT / "docs/architecture.md"
PACKAGES = (
    "config",
    "dataset",
    "engine",
    "evaluators",
    "launcher",
    "losses",
    "models",
    "reports",
    "scripts",
    "tasks",
    "verification",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the toy family, whose one line is in the closed list."""
    root = tmp_path_factory.mktemp("project")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pretrain.py", root)
    shutil.copytree(TOY, root, dirs_exist_ok=True)
    registry = root / "engine/registry.py"
    line = '"train": "language_model"'
    assert line in registry.read_text()
    registry.write_text(registry.read_text().replace(line, f'{line}, "parity": "parity"'))
    return root


def run(project: Path, *argv: str, code: int = 0, **environment: str) -> str:
    """What a command of the copy prints."""
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(last_checkpoint(run_dir) / "model.safetensors")


@pytest.fixture(scope="module")
def trained(project: Path) -> Path:
    """A run of one process, stopped and resumed."""
    argv = ("parity.py", "device=cpu", "run_name=r")
    run(project, *argv, "max_steps=10")
    assert "step 100/100" in run(project, *argv, "resume=true", "max_steps=null")
    return project / "checkpoints/parity/r"


def test_a_toy_family_trains_resumes_evaluates_and_verifies(project: Path, trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["value"], summary["step"]) == (1.0, 100)
    assert json.loads((trained / "path_signature.json").read_text())["task"] == "tasks.parity@ParityTask"

    shown = run(project, "scripts/evaluate.py", str(trained), "--device", "cpu")
    assert re.search(r"eval/accuracy +1\.0000", shown)
    verify = ("scripts/verify_path.py", "--verbose", "--", "python", "parity.py", "device=cpu")
    shown = run(project, *verify)
    for code in ("CFG240", "MOD410", "MOD420", "MOD432", "MOD450", "MOD460", "SCR112", "SCR120", "SCR141", "SUM600"):
        assert f"✅ {code}" in shown, shown


def test_a_fault_of_the_toy_family_is_observed_and_then_stops_a_launch(project: Path) -> None:
    """What scales the answer is left out of the optimizer's group."""
    task = project / "tasks/parity/task.py"
    text = task.read_text()
    some = "{name: p for name, p in self.module.named_parameters() if 'log_scale' not in name}"
    task.write_text(text.replace("dict(self.module.named_parameters())", some))
    try:
        shown = run(project, "scripts/verify_path.py", "--", "python", "parity.py", "device=cpu", code=1)
        assert "MOD460" in shown
        assert "log_scale in no optimizer group" in shown
        assert "MOD460" in run(project, "parity.py", "device=cpu", "run_name=stopped", code=2)
    finally:
        task.write_text(text)


@pytest.mark.slow
def test_two_ranks_under_ddp_train_the_same_model_and_the_parameter_of_its_loss(project: Path, trained: Path) -> None:
    """One call of the module makes model and loss, so DDP sees the loss head's parameter too."""
    rank = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "parity.py", "device=cpu", "run_name=two", "parallel=ddp"],
            cwd=project,
            env={**os.environ, "OMP_NUM_THREADS": "1", **rank, "RANK": number, "LOCAL_RANK": number},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in ("0", "1")
    ]
    printed = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], printed
    one, two = weights(trained), weights(project / "checkpoints/parity/two")
    assert (
        one.keys() == two.keys() == {"inside.weight", "inside.bias", "head.weight", "head.bias", "loss_head.log_scale"}
    )
    assert one["loss_head.log_scale"] != 0
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_an_architecture_is_one_file(project: Path) -> None:
    """The model that the page shows, as the only new file of the copy."""
    name, body = re.findall(r"<!-- file: (models/\S+) -->\s+```python\n(.*?)```", PAGE.read_text(), re.S)[0]
    (project / name).write_text(body)
    command = ("pretrain.py", "--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu", "max_steps=2")
    run(project, *command, "arch.name=recursive_reasoning.mine@Mine", "+arch.extra_updates=2", "run_dir=mine")
    stored = json.loads((project / "mine/summary.json").read_text())
    assert stored["step"] == 2


def test_the_page_names_what_a_family_brings() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    brought = (path for path in TOY.rglob("*.*") if path.suffix != ".pyc" and path.name != "__init__.py")
    files = [path.relative_to(ROOT).as_posix() for path in brought]
    assert not [name for name in files if f"]({name})" not in text]
    lines = {path.name: len(path.read_text().splitlines()) for path in (TOY / "tasks/parity").glob("*.py")}
    assert sum(lines.values()) <= 200
    assert lines["verify.py"] <= 50


def test_every_family_has_its_parts() -> None:
    for folder in FAMILIES.values():
        assert {"args.py", "family.py", "build.py", "task.py"} <= {p.name for p in (ROOT / "tasks" / folder).iterdir()}
