"""The command line with real Hydra: what composes, what is refused in one line, and the exit codes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A root script with its own config folder, and the shared config/base/run.yaml."""
    shutil.copytree(Path(__file__).parent / "fixtures" / "tiny", tmp_path / "tiny")
    shutil.copytree(ROOT / "config" / "base", tmp_path / "tiny" / "config" / "base")
    return tmp_path / "tiny"


@pytest.fixture
def tiny(project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the script in this process: tiny(*argv) -> (exit code, config that ran or None)."""
    spec = importlib.util.spec_from_file_location("tiny_entry", project / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tiny_entry", module)
    spec.loader.exec_module(module)
    monkeypatch.chdir(project)
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)

    def call(*argv: str) -> tuple[int, dict[str, Any] | None]:
        monkeypatch.setattr(sys, "argv", [str(project / "tiny.py"), *argv])
        with pytest.raises(SystemExit) as caught:
            cli.main(module.launch, module.FAMILY)
        ran = project / "ran.jsonl"
        result = json.loads(ran.read_text().splitlines()[-1]) if ran.exists() else None
        ran.unlink(missing_ok=True)
        return int(caught.value.code or 0), result

    return call


def test_a_mixed_command_composes_and_leaves_the_cwd_clean(tiny: Any, project: Path) -> None:
    before = sorted(path.name for path in project.iterdir() if path.name != "__pycache__")
    prompt = "In 20 words, say 'cat'; Answer: x=y"
    code, config = tiny(
        "+run_name=x",
        "--prompt",
        prompt,
        "--arch",
        "large",
        "--data_paths",
        "a",
        "b c",
        "+debug=tiny",
        "--probs",
        "0.5",
        "1",
        "--use_wandb",
        "--resume",
        "True",
        "arch.H_cycles=7",
    )
    assert code == 0
    assert config is not None
    assert config["prompt"] == prompt
    assert config["arch"] == {"name": "large", "L_cycles": 6, "H_cycles": 7}
    assert (config["run_name"], config["use_wandb"], config["resume"], config["lr"]) == ("x", True, True, 9.0)
    assert (config["data_paths"], config["probs"]) == (["a", "b c"], [0.5, 1])
    assert sorted(path.name for path in project.iterdir() if path.name != "__pycache__") == before


def test_yaml_then_json_then_argv(tiny: Any, project: Path) -> None:
    (project / "c.json").write_text('{"lr": 5.0, "prompt": "json, here", "optimizer": {"lr": 3}}')
    code, config = tiny("--config", "c.json", "--lr", "7")
    assert code == 0
    assert config is not None
    assert (config["lr"], config["prompt"], config["optimizer"]) == (
        7,
        "json, here",
        {"name": "adam", "lr": 3},
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["arch.L_cyles=4"], ["arch.L_cyles", "did you mean 'arch.L_cycles'"]),
        (["+arch.L_cyles=4"], ["arch.L_cyles", "did you mean 'arch.L_cycles'"]),
        (["lrr=1"], ["lrr", "did you mean 'lr'"]),
        (["L_cycles=4"], ["did you mean 'arch.L_cycles'"]),
        (["+lrr=1"], ["lrr", "did you mean 'lr'"]),
        (["optimizer.lrr=1"], ["did you mean 'optimizer.lr'"]),
        (["++optimizer.lrr=1"], ["did you mean 'optimizer.lr'"]),
        (["~lrr"], ["~lrr", "did you mean 'lr'"]),
        (["~arch.L_cyles"], ["~arch.L_cyles", "did you mean 'arch.L_cycles'"]),
        (["--config-name", "cfg_misspelt"], ["lrr", "did you mean 'lr'"]),
        (["--config-name=cfg_tin"], ["did you mean 'cfg_tiny'"]),
        (["--config-name=./cfg_tiny"], ["there is no config ./cfg_tiny", "did you mean 'cfg_tiny'"]),
        (["--config-name="], ["there is no config ''"]),
        (["--config-dir=/nowhere/at/all"], ["--config-dir: there is no folder /nowhere/at/all"]),
        (["+debug=tiny", "+debug=tiny"], ["debug is chosen twice: keep one debug=NAME"]),
        (["--config-name=cfg_other"], ["other.py", "tiny.py"]),
        (["--config-name=base/run"], ["base/run is a fragment of recipes", "cfg_tiny"]),
        (["--config-name=debug/tiny", "-m", "lr=1,2"], ["debug/tiny is a fragment of recipes"]),
        (["hydra/launcher=joblb"], ["hydra/launcher=joblb"]),
        (["hydra.job.nme=x"], ["unknown key 'hydra.job.nme': did you mean 'hydra.job.name'?"]),
        (["hydra.launcher.n_jobs=2"], ["unknown key 'hydra.launcher.n_jobs': add hydra/launcher=joblib"]),
        (["arch=nope"], ["arch=nope", "large, small"]),
        (["arch=smal"], ["did you mean 'small'"]),
        (["+debug=nope"], ["debug=nope", "tiny"]),
        (["lr=[1"], ["lr=[1"]),
        (["lr=abc"], ["lr", "number", "abc"]),
        (["resume=maybe"], ["auto|true|false"]),
        (["accumulation=0"], ["accumulation=0", "at least 1"]),
        (["run_name=${nope}"], ["nope"]),
        (["lr=???"], ["lr", "required"]),
        (["~arch"], ["arch", "required"]),
        (["fail=usage"], ["cannot use it"]),
        (["hydra.run.dir=/proc/x"], ["hydra.run.dir: /proc/x cannot be written (No such file or directory)"]),
        (["hydra.run.dir=/etc/passwd"], ["hydra.run.dir: /etc/passwd cannot be written (File exists)"]),
    ],
)
def test_unusable_commands_exit_2_with_one_line(
    tiny: Any, capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]
) -> None:
    code, config = tiny(*argv)
    error = capsys.readouterr().err
    assert (code, config) == (2, None)
    assert len(error.splitlines()) == 1, error
    assert error.startswith("error: ")
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("fail", "code", "trace"), [("run", 1, False), ("stop", 3, False), ("key", 3, False), ("bug", 1, True)]
)
def test_exit_codes_of_failures(
    tiny: Any, capsys: pytest.CaptureFixture[str], fail: str, code: int, trace: bool
) -> None:
    assert tiny(f"fail={fail}") == (code, None)
    assert ("Traceback" in capsys.readouterr().err) == trace


def test_the_users_full_error_shows_the_traceback_and_is_left_as_it_was(
    tiny: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny("fail=usage")[0] == 2
    assert "HYDRA_FULL_ERROR" not in os.environ
    capsys.readouterr()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert tiny("fail=usage")[0] == 2
    assert "Traceback" in capsys.readouterr().err
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_a_yaml_that_does_not_parse_is_named(tiny: Any, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "config" / "arch" / "broken.yaml").write_text("a: [1\nb: 2")
    assert tiny("arch=broken")[0] == 2
    error = capsys.readouterr().err
    assert "broken.yaml" in error
    assert len(error.splitlines()) == 1


def test_no_sweep_under_torchrun(
    tiny: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert tiny("-m", "lr=1,2")[0] == 2
    assert "torchrun" in capsys.readouterr().err


def test_help_shows_both_styles_keys_defaults_docs_and_groups(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny("--help")[0] == 0
    text = capsys.readouterr().out
    for part in (
        "key=value",
        "--key value",
        "arch=large|small",
        "prompt  [text]  The animal",
        "Free text.",
        "attention  [auto|sdpa|flash|math]  auto",
        "optimizer.lr",
        "cfg_tiny",
        'data_paths  [list of text]  ["data/a"]',
    ):
        assert part in text, part


def test_a_real_process_ends_with_the_code_and_without_torch(project: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)

    def start(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "tiny.py", *argv], cwd=project, env=environment, capture_output=True, text=True
        )

    good = start("--lr", "3", "--no-use_wandb")
    assert (good.returncode, json.loads(good.stdout)["lr"], good.stderr) == (0, 3, "")
    bad = start("--learning", "3")
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)
    probe = "import sys, engine.cli, engine.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], env=environment).returncode == 0


def _check_help(container: Any, action: argparse.Action) -> None:
    """What argparse of Python 3.14 does with each argument that is added."""
    if action.help and hasattr(container, "_get_formatter"):
        try:
            container._get_formatter()._expand_help(action)
            _ = "%" in action.help
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError("badly formed help string") from error


def test_hydras_parser_is_made_where_help_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Python 3.14 (there this is argparse's own check)."""
    from hydra._internal.utils import get_args_parser

    from engine.cli.main import allow_lazy_help

    owner: Any = argparse._ActionsContainer
    if not hasattr(owner, "_check_help"):
        add = owner.add_argument

        def add_argument(container: Any, *args: Any, **kwargs: Any) -> argparse.Action:
            action = add(container, *args, **kwargs)
            container._check_help(action)
            return action

        monkeypatch.setattr(owner, "_check_help", _check_help, raising=False)
        monkeypatch.setattr(owner, "add_argument", add_argument)
        with pytest.raises(ValueError, match="badly formed help string"):
            get_args_parser()
        allow_lazy_help()  # on Python 3.14 importing engine.cli.main does so
    assert get_args_parser().parse_args(["--cfg", "job", "a=1"]).overrides == ["a=1"]
    with pytest.raises(ValueError, match="badly formed"):
        argparse.ArgumentParser().add_argument("--x", help="%(nonsense)s")
