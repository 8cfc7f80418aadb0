"""The preflight of a running config: fast, quiet where all is right, one line where it is not; signatures compare."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from engine.cli.compose import compose_config
from engine.config import ConfigSource
from engine.errors import UsageError
from engine.schema import structure
from tasks.recursive_reasoning.args import PretrainConfig
from tasks.recursive_reasoning.family import FAMILY
from tests.conftest import ROOT, _warm_up, run_script
from tests.e2e.recipes import PRETRAIN
from verification import observed, preflight as launching, recall
from verification.finding import Finding
from verification.preflight import compare_signatures, preflight, review
from verification.static import verify_command

FOLDERS = [ROOT / "config"]


def running(recipe: str, *overrides: str):
    """A config as load_synced_config makes it."""
    composed = compose_config(FOLDERS, recipe, list(overrides))
    resolved = OmegaConf.to_container(composed.config, resolve=True)
    config = structure(PretrainConfig, resolved)
    vars(config)["_source"] = ConfigSource("", resolved, list(overrides), recipe, composed.choices)
    return config


@pytest.mark.parametrize("recipe", PRETRAIN.recipes)
def test_every_recipe_starts(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    signature = preflight(running(recipe), "pretrain")
    assert signature["config"] == recipe
    assert signature["train_forward"] == "_forward_train_original"
    assert signature["encoder_policy"] == "none"
    assert "warning" not in capsys.readouterr().out


def test_a_smoke_run_is_warned_not_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    preflight(running("cfg_pretrain_sudoku_extreme_mlp", "+debug=tiny"), "pretrain")
    assert "CFG250" in capsys.readouterr().out


def test_a_fault_stops_with_one_line_and_its_fix() -> None:
    with pytest.raises(UsageError, match=r"CFG250 .*lr_warmup_steps=500.*lr_warmup_steps=12") as caught:
        preflight(running("cfg_pretrain", "lr_warmup_steps=500", "verify=strict"), "pretrain")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("level", "printed"), [("warn", True), ("off", False)])
def test_the_level_decides(level: str, printed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    config = running("cfg_pretrain", "lr_warmup_steps=500")
    vars(config)["verify"] = level
    signature = preflight(config, "pretrain")
    assert ("CFG250" in capsys.readouterr().out) == printed
    assert bool(signature) == printed


def test_a_launch_takes_what_was_observed_before_and_observes_nothing_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = [Finding("MOD440", "FAIL", "5", "nothing is carried", "carry it", "models/a.py", 3)]
    seen += [Finding("SCR140", "WARN", "2", "a comment of the other mode")]
    known: list[dict] = []
    monkeypatch.setattr(observed, "recall", lambda question, compute, keep_if: compute() if compute else known)
    preflight(running("cfg_pretrain_sudoku_4x4"), "pretrain")
    known += [asdict(one) for one in seen]
    with pytest.raises(UsageError, match=r"MOD440 models/a.py:3: nothing is carried: carry it .*; verify=warn"):
        preflight(running("cfg_pretrain_sudoku_4x4"), "pretrain")
    assert "warning: SCR140 a comment of the other mode" in capsys.readouterr().out


def test_a_launch_finds_the_verdict_of_verify_path(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--config-name=cfg_pretrain_sudoku_4x4", "arch.H_cycles=1"]
    verify_command(["python", "pretrain.py", *words], root=ROOT)
    recall.MEMORY.clear()
    recalled = []
    monkeypatch.setattr(
        observed, "recall", lambda *how, **more: recalled.append(recall.recall(*how, **more)) or recalled[0]
    )
    # what leaves a run the same run leaves its verdict the same
    preflight(running("cfg_pretrain_sudoku_4x4", "arch.H_cycles=1", "device=cpu", "max_steps=9"), "pretrain")
    assert {row["code"] for row in recalled[0]} >= {"MOD420", "MOD440", "SCR141"}


def test_the_rules_need_no_torch_and_little_time() -> None:
    """Of a command whose classes are known, in a fresh process."""
    words = ["python", "pretrain.py", "--config-name=cfg_pretrain_sudoku_4x4", "arch.H_cycles=1"]
    verify_command(words, root=ROOT)
    program = f"""
import sys, time
from pathlib import Path
from engine.cli.resolve import resolve
from launcher.command import parse
from verification.preflight import run_rules, observed
from verification.subject import Subject
trace = resolve(Path("pretrain.py").resolve(), {words[2:]}, root=Path.cwd())
start = time.process_time()
subject = Subject(trace=trace, command=parse({words}), kind="launch")
findings = [*run_rules(subject, launch=True), *observed(subject, start=False)]
took = time.process_time() - start
levels = {{one.code: one.level for one in findings}}
assert levels["ARC312"] == levels["SCR112"] == levels["MOD440"] == "PASS", levels
assert "torch" not in sys.modules
print(took)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3


def test_a_launch_does_not_execute_its_script_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _warm_up()  # which observes all scripts, in this process
    monkeypatch.setattr("engine.cli.resolve.observe_script", None)
    done = run_script("pretrain", "+debug=tiny", "max_steps=1", "device=cpu", f"run_dir={tmp_path}/run", cwd=tmp_path)
    assert done.code == 0, done.output
    signature = json.loads((tmp_path / "run/path_signature.json").read_text())
    assert (signature["script"], signature["decorator_config"]) == ("pretrain.py", "cfg_pretrain")


def test_a_family_that_is_not_listed_does_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "FAMILIES", {"train": "language_model"})
    with pytest.raises(
        UsageError, match=r"pretrain\.py is not a known entry script, .* FAMILIES of engine/registry\.py"
    ):
        launching.check_launch(FAMILY, running("cfg_pretrain_sudoku_4x4"))


def test_places_are_found_without_composing() -> None:
    _, report = review(running("cfg_pretrain_sudoku_4x4", "arch.halt_exploration_prob=0.5"), "pretrain")
    (halting,) = [finding for finding in report.findings if finding.code == "CFG231"]
    lines = (ROOT / "config/arch/trm.yaml").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.startswith("halt_exploration_prob:"))
    assert halting.place == f"config/arch/trm.yaml:{line}"
    assert not report.failed()


def test_signatures_compare() -> None:
    old = preflight(running("cfg_pretrain_sudoku_4x4"), "pretrain")
    other = preflight(running("cfg_pretrain_sudoku_4x4", "arch=hrm", "arch.H_layers=1"), "pretrain")
    fails, warns = compare_signatures(old, {**other, "world_size": 7, "commit": "other"})
    assert any(text.startswith("model: ") for text in fails)
    assert {text.partition(":")[0] for text in warns} >= {"world_size", "commit"}
    assert compare_signatures(old, dict(old)) == ([], [])
    assert compare_signatures({}, old) == ([], [])
