from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset.arguments import positive
from engine.cli.console import run_command
from engine.errors import Interrupted, RunFailure, UsageError
from reports.output import check_json_target, write_json_result
from scripts import evaluate, visualize
from tasks.loading import pick_checkpoint
from tasks.recursive_reasoning.evaluate import result_file
from tasks.recursive_reasoning.loading import load_puzzle_run
from tasks.recursive_reasoning.rollouts import rollouts_of
from tests.conftest import run_script


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError("wrong"), 2), (RunFailure("wrong"), 1), (Interrupted("wrong"), 3)],
)
def test_exit_codes_and_one_line(error: BaseException, code: int, capsys: pytest.CaptureFixture) -> None:
    assert run_command(raising(error)) == code
    assert capsys.readouterr().err == "error: wrong\n"


def test_success_and_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command(lambda: None) == 0
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: print(1 // 0))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UsageError):
        run_command(raising(UsageError("wrong")))


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", ""])
def test_positive_refuses(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        positive(text)


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        (evaluate, []),
        (evaluate, ["run", "--steps", "0"]),
        (evaluate, ["run", "--split", "valid"]),
        (evaluate, ["run", "--max-examples", "some"]),
        (visualize, ["run", "--out", "picture.jpg"]),
        (visualize, ["run", "--example", "1", "--examples", "2"]),
    ],
)
def test_bad_command_lines_exit_2_in_one_line(script, argv: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        script.parse(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_good_command_lines() -> None:
    assert evaluate.parse(["run", "--max-examples", "all"]).max_examples == "all"
    assert evaluate.parse(["run", "--max-examples", "7"]).max_examples == 7
    assert visualize.parse(["run", "--example", "0"]).example == 0


@pytest.mark.parametrize("script", ["scripts/evaluate", "scripts/visualize"])
def test_help_and_missing_run_from_anywhere(script: str, tmp_path) -> None:
    shown = run_script(script, "--help", cwd=tmp_path)
    assert shown.code == 0
    assert "python scripts/" in shown.output
    missing = run_script(script, "no/such/run", cwd=tmp_path)
    assert missing.code == 2, missing.output
    assert missing.output.count("\n") == 1
    assert "no/such/run" in missing.output


@pytest.mark.parametrize(
    ("argv", "steps", "max_examples", "name"),
    [
        ([], 8, None, "evaluation_step_5.json"),
        (["--batch-size", "4", "--weights", "ema"], 8, None, "evaluation_step_5.json"),
        (["--steps", "32"], 32, None, "evaluation_step_5_steps-32.json"),
        (["--split", "train", "--weights", "raw"], 8, 10, "evaluation_step_5_train_examples-10_raw.json"),
        (["--rollouts", "4", "--vary", "noise"], 8, None, "evaluation_step_5_rollouts-4_noise.json"),
        (["--data", "x"], 8, None, "evaluation_step_5_data-01234567.json"),
    ],
)
def test_results_of_other_settings_get_other_files(argv, steps: int, max_examples, name: str, tmp_path) -> None:
    opened = SimpleNamespace(
        run_dir=tmp_path,
        checkpoint=SimpleNamespace(step=5, has_ema=True),
        config=SimpleNamespace(arch={"halt_max_steps": 8}, final_eval_max_examples=None),
    )
    run = SimpleNamespace(opened=opened, steps=steps, data=[{"path": "x", "content_hash": "0123456789ab"}])
    path = result_file(run, evaluate.parse(["run", *argv]), max_examples)
    assert path == tmp_path / name


@pytest.mark.parametrize(
    ("argv", "steps", "words"),
    [
        (["--vary", "noise"], 8, "add --rollouts"),
        (["--rollouts", "1"], 8, "--rollouts 1"),
        (["--rollouts", "2"], 1, "--rollouts 2 needs 2 ACT steps or more"),
        (["--rollouts", "2", "--sigma", "0.1"], 8, "no meaning with --vary init"),
        (["--rollouts", "2", "--vary", "noise", "--sigma", "-1"], 8, "--sigma -1: expected a number above 0"),
        (["--rollouts", "2", "--vary", "noise", "--sigma", "nan"], 8, "--sigma nan"),
        (["--rollouts", "2", "--halting", "latched"], 8, "--halting latched"),
    ],
)
def test_rollouts_that_cannot_be_are_refused(argv, steps: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        rollouts_of(evaluate.parse(["run", *argv]), 0, steps)


def test_data_and_results_of_others_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data names .*x twice: its examples would count twice"):
        load_puzzle_run(tmp_path, data=["x", tmp_path / "y", "./x"])
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UsageError, match=r"config\.yaml exists and is not a result of an evaluation"):
        check_json_target(tmp_path / "config.yaml")
    write_json_result(tmp_path / "mine.json", {"settings": {"run": "r"}})
    check_json_target(tmp_path / "mine.json")


def test_a_folder_of_runs_lists_them(tmp_path: Path) -> None:
    from engine.run.load_run import find_checkpoint

    for name in ("old", "new"):
        (tmp_path / f"checkpoints/demo/{name}/checkpoints").mkdir(parents=True)
    for folder in ("checkpoints/demo", "checkpoints", "."):
        with pytest.raises(
            UsageError, match=r"is a folder of runs: name one of them, .*demo/(new|old), .*demo/(new|old)"
        ):
            find_checkpoint(tmp_path / folder)
    with pytest.raises(UsageError, match="holds no checkpoint yet"):
        find_checkpoint(tmp_path / "checkpoints/demo/new")
    with pytest.raises(UsageError, match="is a folder of runs"):  # as sample.py and export_gpt2.py look for it
        find_checkpoint(pick_checkpoint(tmp_path, "best"))


def test_a_folder_that_is_no_run_is_called_that(tmp_path: Path) -> None:
    from engine.run.load_run import find_checkpoint

    for name in ("src", "run", "step_4"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="src is neither a run directory nor a checkpoint"):
        find_checkpoint(tmp_path / "src")
    (tmp_path / "run/identity.json").write_text("{}")
    with pytest.raises(UsageError, match="run holds no checkpoint yet"):
        find_checkpoint(tmp_path / "run")
    with pytest.raises(UsageError, match=r"manifest.json is missing"):
        find_checkpoint(tmp_path / "step_4")
    (tmp_path / "run/checkpoints/step_7").mkdir(parents=True)
    (tmp_path / "run/checkpoints/best").write_text("step_7\n")
    with pytest.raises(UsageError, match=r"step_7: manifest.json is missing"):
        find_checkpoint(tmp_path / "run/checkpoints/best")
