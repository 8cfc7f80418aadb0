"""Runs that exist: --checkpoint judges the stored config, and resume=true a command by the run that it would resume."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scripts.verify_path import run
from tests.conftest import ROOT, run_script
from verification.rules.stored import tensors
from verification.static import verify_command

TINY = ["--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu", "run_name=a"]


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository without code but with a run of two steps in it."""
    root = tmp_path_factory.mktemp("repo")
    for path in ROOT.iterdir():
        if path.name not in ("data", "checkpoints") and not path.name.startswith("."):
            (root / path.name).symlink_to(path)
    (root / "data").symlink_to(tiny_data)
    done = run_script("pretrain", *TINY, "lr_warmup_steps=1", "arch.H_cycles=1", cwd=root)
    assert done.code == 0, done.output
    assert "warning" not in done.output
    return root


@pytest.fixture
def kept(trained: Path) -> Path:
    """The run's folder; as it was after the test."""
    folder = trained / "checkpoints/pretrain/a"
    before = {path: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}
    yield folder
    for path, content in before.items():
        path.write_bytes(content)


def examine(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    root = next(path for path in folder.parents if (path / "config").is_dir())
    code = run(["--checkpoint", str(folder), "--root", str(root), "--static", "--json", "-"])
    report = json.loads(capsys.readouterr().out)["reports"][0]
    return code, {(f["code"], f["level"]): f["message"] for f in report["findings"]} | report["facts"]


def test_a_run_is_what_its_command_is_today(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, findings = examine(kept, capsys)
    assert code == 0
    assert {("CKP610", "PASS"), ("CKP611", "PASS"), ("CKP613", "PASS")} <= findings.keys()
    assert findings["CKP613", "PASS"] == "step 2 of 16"
    assert examine(kept / "checkpoints" / "step_2", capsys) == (code, findings)


@pytest.mark.parametrize(
    ("file", "old", "new", "code", "message"),
    [
        ("overrides.txt", "arch.H_cycles=1", "arch.H_cycles=2", "CKP610", "arch.H_cycles: 1 in the run, 2 composed"),
        ("path_signature.json", '"dynamic"', '"fixed"', "CKP611", "act_mode: fixed -> dynamic"),
        ("status.json", '"step": 2', '"step": 99', "CKP613", "step 99 of 16"),
        ("config.yaml", "recursive_reasoning.trm@TRM", "recursive_reasoning.trm@TRX", "ARC312", "has no class TRX"),
    ],
)
def test_a_run_that_is_another(
    kept: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, code: str, message: str
) -> None:
    text = (kept / file).read_text()
    assert old in text
    (kept / file).write_text(text.replace(old, new))
    status, findings = examine(kept, capsys)
    assert status == 1
    assert message in findings[code, "FAIL"]


def test_tensors_are_compared_with_those_of_the_model(trained: Path, kept: Path) -> None:
    import pretrain

    config = OmegaConf.to_container(OmegaConf.load(kept / "config.resolved.yaml"))
    assert tensors(kept, config, pretrain).level == "PASS"
    config["arch"]["pos_encodings"] = "learned"
    comparison = tensors(kept, config, pretrain)
    assert (comparison.level, comparison.message) == ("FAIL", "the checkpoint lacks inner.embed_pos.embedding_weight")
    assert tensors(kept.parent, config, pretrain).level == "SKIP"


def test_a_run_that_was_resumed_by_name(trained: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kept / "overrides.txt").write_text("resume=true\nrun_name=a\n")  # what a resume by name leaves there
    code, findings = examine(kept, capsys)
    assert code == 0
    assert "command that began it is not stored" in findings["CKP610", "SKIP"]
    assert findings["steps"] == 16


def test_a_run_of_a_recipe_that_lies_elsewhere(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (kept / "config.yaml").read_text()
    (kept / "config.yaml").write_text(text.replace('"cfg_pretrain_sudoku_4x4"', '"cfg_of_mine"', 1))
    code, findings = examine(kept, capsys)
    assert "no longer composes" in findings["CKP610", "SKIP"]
    assert code == 0, findings


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "is not a run directory"), ("a: [", "is not YAML"), ("seed: 1\n", "it does not belong to a run")],
)
def test_what_is_no_run(tmp_path: Path, text: str | None, words: str) -> None:
    from engine.errors import UsageError

    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        run(["--checkpoint", str(tmp_path)])


# --- resume=true ------------------------------------------------------------------------------------------------------


def judged(root: Path, line: str):
    return verify_command(shlex.split(f"python pretrain.py {line}"), root=root, probes=False)


def test_a_resume_is_judged_by_the_stored_config(trained: Path) -> None:
    report = judged(trained, "resume=true run_name=a max_steps=4")
    assert report.verdict == "PASS", report.of("FAIL", "WARN")
    assert report.facts["config"] == "cfg_pretrain_sudoku_4x4"  # not the decorator's
    assert report.facts["model"] == "recursive_reasoning.trm@TRM"
    assert (report.facts["steps"], report.facts["max_steps"]) == (16, 4)
    assert report.facts["initial_weights"] == "resumed"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("arch=hrm", "JOB030"),
        ("arch.expandion=2", "JOB030"),
        ("arch.halt_max_steps=1", "CFG230"),
        ("max_steps=null lr_warmup_steps=17", "CFG250"),
    ],
)
def test_a_resume_that_would_go_wrong(trained: Path, line: str, code: str) -> None:
    assert code in judged(trained, f"resume=true run_name=a {line}").codes("FAIL")


def test_values_for_the_run_need_not_fit_the_recipe(trained: Path, kept: Path) -> None:
    stored = kept / "config.yaml"
    stored.write_text(stored.read_text().replace("\nepochs: 1\n", "\nepochs: 2\n"))
    report = judged(trained, "resume=true run_name=a max_steps=4 eval_interval=2")  # the recipe's epochs are 1
    assert report.verdict == "PASS", report.of("FAIL", "WARN")


def test_a_resume_of_a_run_that_is_elsewhere_is_judged_as_composed(trained: Path) -> None:
    report = judged(trained, "resume=true run_name=on_another_machine")
    assert report.verdict == "PASS"
    assert report.facts["config"] == "cfg_pretrain"


def test_a_launch_that_resumes_judges_the_same(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained / "checkpoints", root / "checkpoints", symlinks=True)
    (root / "data").symlink_to(trained / "data")
    done = run_script("pretrain", "resume=true", "run_name=a", "arch.halt_max_steps=1", "device=cpu", cwd=root)
    assert done.code == 2
    assert "error: CFG230" in done.output
    done = run_script("pretrain", "resume=true", "run_name=a", "max_steps=3", "device=cpu", cwd=root)
    assert done.code == 0, done.output
    assert "warning" not in done.output
