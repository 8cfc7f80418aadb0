"""One true subprocess per form of command, exactly as a user types it, in an empty folder and without the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, status_of

TINY = ("--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu")


def shell(*command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def python(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return shell(sys.executable, *words, cwd=cwd, **env)


@pytest.mark.slow
def test_the_documented_smoke_command_verbatim(tmp_path: Path) -> None:
    """`python pretrain.py device=cpu max_steps=10` of the README: full-size HRM, data built on first use."""
    done = python(str(ROOT / "pretrain.py"), "device=cpu", "max_steps=10", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is missing: building it now") == 1
    (run,) = (tmp_path / "checkpoints/pretrain").iterdir()
    assert (run / "step_10/manifest.json").exists()
    assert status_of(run)["state"] == "done"
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["checkpoints", "data"]


def test_evaluate_and_visualize_a_run(workplace: Path) -> None:
    done = python(str(ROOT / "pretrain.py"), *TINY, "run_name=r", cwd=workplace)
    assert done.returncode == 0, done.stderr
    run = "checkpoints/pretrain/r"
    done = python(str(ROOT / "scripts/evaluate.py"), run, "--device", "cpu", cwd=workplace)
    assert done.returncode == 0, done.stderr
    done = python(str(ROOT / "scripts/visualize.py"), run, "--device", "cpu", "--out", "thinking.png", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert (workplace / "thinking.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_torchrun_with_two_gloo_ranks(workplace: Path) -> None:
    done = python(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "pretrain.py"),
        *TINY,
        "run_name=r",
        cwd=workplace,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rank(s)" in done.stdout
    assert done.stdout.count("done:") == 1


@pytest.mark.slow
def test_torchrun_reports_1_and_status_tells_the_truth(workplace: Path) -> None:
    done = python(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "pretrain.py"),
        *TINY,
        "run_name=r",
        "global_batch_size=5",
        cwd=workplace,
    )
    assert done.returncode == 1
    status = status_of(workplace / "checkpoints/pretrain/r")
    assert (status["state"], status["exit_code"]) == ("refused", 2)


def test_a_sweep_is_one_child_process_per_job(workplace: Path) -> None:
    done = python(str(ROOT / "pretrain.py"), *TINY, "-m", "run_name=s", "lr=1e-3,1e-2", cwd=workplace)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sorted(path.name for path in (workplace / "checkpoints/pretrain").iterdir())
    assert runs == ["s_lr-0.001", "s_lr-0.01"]


def test_the_builder_as_a_module(tmp_path: Path) -> None:
    done = python(
        "-m",
        "dataset.build_sudoku_dataset",
        "--size",
        "4",
        "--num-train",
        "20",
        "--num-test",
        "5",
        "--output-dir",
        "data/mine",
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/mine/card.json").exists()


@pytest.mark.parametrize("words", [("--help",), ("lrr=3",), ("--lrr", "3")], ids=" ".join)
def test_help_and_typos_answer_without_torch(tmp_path: Path, words: tuple[str, ...]) -> None:
    probe = "import sys, runpy; sys.argv = ['pretrain.py', *sys.argv[1:]]\ntry:\n runpy.run_path({!r}, run_name='__main__')\n"
    probe += "except SystemExit as end:\n print('CODE', end.code, 'TORCH', 'torch' in sys.modules)"
    done = python("-c", probe.format(str(ROOT / "pretrain.py")), *words, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert f"CODE {0 if words == ('--help',) else 2} TORCH False" in done.stdout, done.stdout + done.stderr
