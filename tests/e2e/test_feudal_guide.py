"""The user's guide to HRM with a manager, word for word: each command is accepted, verified, and does what it says."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT, SHARED, _entry, metrics, run_forked, run_script, status_of
from tests.e2e.recipes import PRETRAIN
from tests.e2e.test_docs import check, commands, read
from tests.engine.test_trackers import fake_wandb
from verification.static import verify_command

# All shell blocks of ../shared/guides/feudal_hrm.md. `cd HRM` means the root of the repository.
GUIDE = """\
cd scripts
./run_training.sh
cd HRM
python pretrain.py device=cpu max_steps=10 enable_wandb=false global_batch_size=4
cd HRM
python pretrain.py --config-name=cfg_pretrain \\
    device=cpu \\
    max_steps=10 \\
    enable_wandb=false \\
    global_batch_size=4 \\
    loss.feudal_loss_weight=0.1
python pretrain.py enable_wandb=true project_name=scout run_name=feudal_exp_1
for weight in 0.01 0.05 0.1 0.2 0.5; do
    python pretrain.py loss.feudal_loss_weight=$weight run_name=feudal_weight_$weight
done
for period in 1 2 4 8; do
    python pretrain.py arch.subgoal_head.manager_period=$period run_name=period_$period
done
python pretrain.py device=cpu max_steps=5 enable_wandb=false global_batch_size=2
"""
MORE = """\
python pretrain.py loss.feudal_loss_weight=0
python pretrain.py ~arch.subgoal_head
python pretrain.py arch.subgoal_head=null
python pretrain.py arch.subgoal_head.gating=false
python pretrain.py -m loss.feudal_loss_weight=0.01,0.05,0.1,0.2,0.5
python pretrain.py -m arch.subgoal_head.manager_period=1,2,4,8
python pretrain.py data_path=data/sudoku-default
python pretrain.py --data_path data/sudoku-default --loss.feudal_loss_weight 0.2
"""
SPOKEN = [" ".join(words) for words in commands(GUIDE + MORE)]
SAID = {"max_steps": "CFG250", "0.2": "ARC340", "0.5": "ARC340", "~arch": "ARC340", "head=null": "ARC340"}
"""What a command may be warned of: a short run of its warm-up, a weight that harms, a weight without a head."""
TINY = ("+debug=tiny", "device=cpu", "arch.halt_max_steps=4", "arch.subgoal_head.manager_period=2", "lr_warmup_steps=1")


def test_the_guide_is_what_is_tested_here() -> None:
    path = SHARED / "guides/feudal_hrm.md"
    if not path.exists():
        pytest.skip(f"the guide is not here: {path}")
    assert "".join(block.body for block in read(path).blocks if block.kind == "bash") == GUIDE


def test_loops_are_unrolled_as_a_shell_does_it(tmp_path: Path) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\necho python "$@"\n')
    (tmp_path / "python").chmod(0o755)
    text = GUIDE.partition("cd HRM\n")[2].replace("cd HRM\n", "")
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == sorted(shlex.join(words) for words in commands(text))
    assert len(commands(GUIDE)) == 14


@pytest.mark.parametrize("probes", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["rules", "probes"])
@pytest.mark.parametrize("command", SPOKEN)
def test_every_command_is_accepted_and_verifies(command: str, probes: bool) -> None:
    words = command.split()
    check(words)
    report = verify_command(words, root=ROOT, probes=probes)
    assert report.verdict != "SKIP"
    assert not report.of("FAIL"), report.of("FAIL")
    allowed = {code for part, code in SAID.items() if part in command}
    assert report.codes("WARN") <= allowed, report.of("WARN")


GATE, GRAD = "arch.loss.feudal_gate", "arch.loss.feudal_grad"
OWN, MODE = "arch.loss.manager_loss_weight", "arch.subgoal_head.manager_mode"


@pytest.mark.parametrize(
    ("override", "idle"),
    [
        (f"{GATE}=live", None),
        (f"{GATE}=live arch.subgoal_head.gating=false", GATE),
        (f"{GATE}=live arch.subgoal_head.goal_credit=none", GATE),
        (f"{GATE}=none arch.subgoal_head.goal_credit=none", None),
        (f"{GRAD}=both arch.subgoal_head.goal_credit=none", GRAD),
        (f"{GRAD}=manager arch.subgoal_head.goal_credit=none", None),
        (f"{GRAD}=both loss.feudal_loss_weight=0", GRAD),
        (f"{GRAD}=both arch.loss.use_alignment_loss=false", GRAD),
        (f"{OWN}=0.2", OWN),
        (f"{OWN}=0.2 {MODE}=fun", None),
        (f"{MODE}=fun arch.subgoal_head.goal_source=random", MODE),
    ],
)
def test_a_key_that_would_do_nothing_is_said(override: str, idle: str | None) -> None:
    report = verify_command(["python", "pretrain.py", "device=cpu", *override.split()], root=ROOT, probes=False)
    warned = [finding.message.split()[0] for finding in report.of("WARN") if finding.code == "JOB031"]
    assert warned == ([] if idle is None else [idle])


def test_the_defaults_of_the_guide() -> None:
    arch = PRETRAIN.compose("cfg_pretrain").arch
    head, small = arch["subgoal_head"], PRETRAIN.compose("cfg_pretrain", "arch.hidden_size=32").arch["subgoal_head"]
    assert (head["manager_period"], head["gating"], arch["loss"]["feudal_loss_weight"]) == (4, True, 0.1)
    assert head["goal_dim"] == head["hidden_size"] == arch["hidden_size"] == 512
    assert small["goal_dim"] == small["hidden_size"] == 32
    assert (arch["halt_max_steps"], arch["H_cycles"], arch["L_cycles"]) == (16, 2, 2)
    assert PRETRAIN.compose("cfg_pretrain").enable_wandb is False


def test_the_later_weight_key_wins() -> None:
    keys = ("loss.feudal_loss_weight=0.2", "arch.loss.feudal_loss_weight=0.3")
    for words, want in (((), 0.1), (keys[:1], 0.2), (keys[1:], 0.3), (keys, 0.3)):
        assert PRETRAIN.compose("cfg_pretrain", *words).arch["loss"]["feudal_loss_weight"] == want


# --- the script -------------------------------------------------------------------------------------------------------


def clone(folder: Path, data: Path) -> Path:
    """A checkout without data and runs: everything in it is a link, but for scripts/, where the shell script starts."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("scripts", "data", "checkpoints", ".venv") and not path.name.startswith(".git"):
            (folder / path.name).symlink_to(path)
    (folder / "scripts").mkdir()
    (folder / "data").symlink_to(data)
    script = folder / "scripts/run_training.sh"
    script.write_bytes((ROOT / "scripts/run_training.sh").read_bytes())
    script.chmod((ROOT / "scripts/run_training.sh").stat().st_mode)
    return folder


def bash(line: str, cwd: Path, path: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(["/bin/bash", "-c", line], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_the_script_runs_from_its_own_folder_with_further_arguments(tmp_path: Path, tiny_data: Path) -> None:
    """`cd scripts && ./run_training.sh`, here on data that the tests have built."""
    site, path = clone(tmp_path / "clone", tiny_data), f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = bash("cd scripts && ./run_training.sh 'data_paths=[data/debug-sudoku-4x4]' lr=0.01", site, path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = site / "checkpoints/pretrain/quick_test"
    config = OmegaConf.load(run / "config.resolved.yaml")
    arch = config.arch
    assert (arch.hidden_size, arch.subgoal_head.goal_dim, arch.puzzle_emb_ndim, arch.H_layers, arch.L_layers) == (
        32,
        32,
        32,
        1,
        1,
    )
    assert (config.max_steps, arch.loss.feudal_loss_weight, config.enable_wandb) == (10, 0.1, False)
    assert (config.device, config.lr) == ("cpu", 0.01)
    lines = metrics(run)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 11))
    for name in ("train/lm_loss", "train/feudal_loss", "train/loss", "train/accuracy", "train/steps"):
        assert f"{name} " in done.stdout
        assert any(name in line for line in lines)
    assert 0 < lines[-1]["train/feudal_loss"] < 2
    assert "warning" not in done.stdout + done.stderr
    assert status_of(run)["state"] == "done"


def test_the_script_says_what_is_missing(tmp_path: Path, tiny_data: Path) -> None:
    site, path = clone(tmp_path / "clone", tiny_data), tmp_path / "bin"
    path.mkdir()
    for tool in ("dirname", "env", "bash"):
        (path / tool).symlink_to(f"/usr/bin/{tool}")
    done = bash(f"{site}/scripts/run_training.sh", tmp_path, str(path))
    assert done.returncode == 2
    assert done.stderr == f"error: no python here has torch and hydra: run make setup in {site}\n"


# --- short runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [line for line in SPOKEN if "device=cpu" in line and "arch." not in line])
def test_the_short_commands_run(workplace: Path, command: str) -> None:
    done = run_script("pretrain", *command.split()[2:], *TINY[:1], "run_name=r", cwd=workplace)
    assert done.code == 0, done.output
    lines = metrics(workplace / "checkpoints/pretrain/r")
    steps = int(command.split("max_steps=")[1].split()[0])
    assert [line["step"] for line in lines if "train/feudal_loss" in line] == list(range(1, steps + 1))


def _with_wandb(kind: str, argv: list[str]) -> None:
    sys.modules["wandb"] = None if kind == "absent" else fake_wandb(mode="online", login=False)[0]  # type: ignore[assignment]
    _entry("pretrain", argv)


@pytest.mark.parametrize("kind", ["absent", "not logged in"])
def test_the_wandb_command_goes_on_without_it(workplace: Path, kind: str) -> None:
    words = next(line for line in SPOKEN if "project_name=scout" in line).split()[2:]
    done = run_forked(_with_wandb, kind, [*words, *TINY], cwd=workplace)
    assert done.code == 0, done.output
    (warning,) = [line for line in done.output.splitlines() if "warning" in line]
    assert warning.startswith("warning: no wandb metrics")
    assert metrics(workplace / "checkpoints/scout/feudal_exp_1")


def test_a_loop_given_again_repeats_its_runs_or_skips_them(workplace: Path) -> None:
    line = ["arch.subgoal_head.manager_period=1", "run_name=period_1", *TINY[:3], *TINY[4:]]
    first, again = (run_script("pretrain", *line, cwd=workplace) for _ in range(2))
    assert (first.code, again.code) == (0, 0), again.output
    assert "was in the way (a finished run) and is now period_1.1" in again.output
    runs = workplace / "checkpoints/pretrain"
    assert metrics(runs / "period_1") == metrics(runs / "period_1.1")
    skipped = run_script("pretrain", *line, "skip_finished=true", cwd=workplace)
    assert (skipped.code, "done already" in skipped.output) == (0, True), skipped.output
    assert sorted(path.name for path in runs.iterdir()) == ["period_1", "period_1.1"]


@pytest.mark.parametrize("word", ["global_batch_size=1", "arch.subgoal_head.manager_period=100"])
def test_the_ends_of_a_range_train(workplace: Path, word: str) -> None:
    done = run_script("pretrain", *TINY, "max_steps=6", word, "run_name=r", cwd=workplace)
    assert done.code == 0, done.output
    assert metrics(workplace / "checkpoints/pretrain/r")[3]["train/feudal_loss"] > 0
