"""kill -9 or a signal at any step, then the same command again: the same losses, weights and metrics, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.io import sha256_json
from tests.conftest import _entry, finish, last_checkpoint, metrics, run_script, start_forked, status_of, weights

RUN = """
    --config-name=cfg_pretrain_sudoku_4x4 +debug=tiny device=cpu max_steps=24 epochs=4 checkpoint_interval=3
    log_interval=2 eval_interval=1 arch.halt_max_steps=4 arch.halt_exploration_prob=0.5 arch.puzzle_emb_ndim=32
    arch.puzzle_emb_len=2 puzzle_emb_lr=0.01 accumulation=2 grad_clip=1.0 project_name=p run_name=r
""".split()


def final(run: Path) -> dict[str, bytes]:
    return weights(last_checkpoint(run))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "data").symlink_to(tiny_data)
    result = run_script("pretrain", *RUN, cwd=folder)
    assert result.code == 0, result.output
    return folder / "checkpoints/p/r"


def lines_in(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def interrupt(folder: Path, number: int, after_lines: int, argv: Sequence[str] = RUN) -> tuple[int | None, str]:
    """Start the run, send signal `number` once metrics.jsonl has so many lines; returns exit code and output."""
    process, connection = start_forked(_entry, "pretrain", list(argv), cwd=folder)
    file = folder / "checkpoints/p/r/metrics.jsonl"
    while process.is_alive() and lines_in(file) < after_lines:
        time.sleep(0.002)
    os.kill(process.pid, number)
    result = finish(process, connection)
    return result.code, result.output


def test_whole_run_leaves_what_is_promised(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {
        "config.yaml",
        "config.resolved.yaml",
        "all_config.yaml",
        "overrides.txt",
        "metrics.jsonl",
        "status.json",
        "summary.json",
        "environment.json",
        "identity.json",
        "checkpoints",
        "step_24",
    } <= names
    assert status_of(whole)["state"] == "done"
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["name"] == "val/exact_accuracy"
    assert summary["goal"] == "max"
    assert summary["step"] == 24
    card = json.loads((whole / "environment.json").read_text())["data_cards"][0]
    assert len(card["content_hash"]) == 64


@pytest.mark.parametrize("kills", [1, 3])
def test_kill_nine_and_the_same_command_again(whole: Path, workplace: Path, kills: int) -> None:
    order = random.Random(kills)
    for _ in range(kills):
        code, output = interrupt(workplace, signal.SIGKILL, order.randint(1, 9))
        assert code == -signal.SIGKILL, output
    result = run_script("pretrain", *RUN, cwd=workplace)
    assert result.code == 0, result.output
    assert metrics(workplace / "checkpoints/p/r") == metrics(whole)
    assert final(workplace / "checkpoints/p/r") == final(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_exits_three(whole: Path, workplace: Path, number: signal.Signals) -> None:
    run = workplace / "checkpoints/p/r"
    code, output = interrupt(workplace, number, 4)
    assert code == 3, output
    status = status_of(run)
    assert status["state"] == "interrupted"
    assert status["exit_code"] == 3
    assert (run / f"step_{status['step']}" / "manifest.json").exists()
    result = run_script("pretrain", *RUN, cwd=workplace)
    assert result.code == 0, result.output
    assert "resuming from" in result.output
    assert metrics(run) == metrics(whole)
    assert final(run) == final(whole)


def test_a_finished_run_in_the_way_is_set_aside(whole: Path, workplace: Path) -> None:
    argv = [*RUN, "max_steps=2"]
    for _ in range(2):
        result = run_script("pretrain", *argv, cwd=workplace)
        assert result.code == 0, result.output
    assert "was in the way (a finished run) and is now r.1" in result.output
    assert metrics(workplace / "checkpoints/p/r") == metrics(workplace / "checkpoints/p/r.1")


@pytest.mark.parametrize(
    ("budget", "larger"), [("max_steps=12", "max_steps=24"), ("max_seconds=1e-9", "max_seconds=null")]
)
def test_resume_true_goes_on_with_a_finished_run(whole: Path, workplace: Path, budget: str, larger: str) -> None:
    first = run_script("pretrain", *RUN, budget, cwd=workplace)
    assert first.code == 0, first.output
    again = run_script("pretrain", "resume=true", "project_name=p", "run_name=r", "device=cpu", cwd=workplace)
    assert again.code == 0, again.output  # the budget is the run's: nothing is trained
    assert ("max_seconds=1e-09 is up" in again.output) == (budget == "max_seconds=1e-9")
    result = run_script("pretrain", "resume=true", "project_name=p", "run_name=r", larger, "device=cpu", cwd=workplace)
    assert result.code == 0, result.output
    # Nothing but the run's name was given: architecture, data and batch came from the stored config.
    assert final(workplace / "checkpoints/p/r") == final(whole)


def test_a_branch_counts_its_own_seconds(whole: Path, workplace: Path) -> None:
    assert run_script("pretrain", *RUN, "max_steps=2", cwd=workplace).code == 0
    checkpoint = workplace / "checkpoints/p/r/checkpoints/step_2"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["extra"]["spent"]["seconds"] = 1e9
    del manifest["sha256"]
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "sha256": sha256_json(manifest)}))
    branch = ["run_name=b", "max_steps=4", "max_seconds=1e8", f"resume_from={checkpoint}"]
    result = run_script("pretrain", *RUN[:-1], *branch, cwd=workplace)
    assert result.code == 0, result.output
    assert "is up" not in result.output
    assert (workplace / "checkpoints/p/b/checkpoints/latest").read_text().strip() == "step_4"


def test_resume_true_refuses_another_group(whole: Path, workplace: Path) -> None:
    assert run_script("pretrain", *RUN, "max_steps=2", cwd=workplace).code == 0
    argv = ["resume=true", "project_name=p", "run_name=r", "arch=hrm"]
    result = run_script("pretrain", *argv, cwd=workplace)
    assert result.code == 2
    assert "arch=hrm" in result.output


def test_resume_true_without_a_run_names_the_folder(workplace: Path) -> None:
    result = run_script("pretrain", *RUN, "resume=true", cwd=workplace)
    assert result.code == 2
    assert "checkpoints/p/r" in result.output


def test_a_damaged_checkpoint_is_named_and_the_previous_offered(workplace: Path) -> None:
    code, output = interrupt(workplace, signal.SIGTERM, 5)
    assert code == 3, output
    run = workplace / "checkpoints/p/r"
    latest = last_checkpoint(run)
    content = bytearray((latest / "model.safetensors").read_bytes())
    content[-5] ^= 0x40
    (latest / "model.safetensors").write_bytes(content)
    result = run_script("pretrain", *RUN, cwd=workplace)
    assert result.code == 2
    assert "model.safetensors" in result.output
    assert "Traceback" not in result.output
    offered = result.output.split("resume_from=")[1].split()[0]
    result = run_script("pretrain", *RUN, f"resume_from={offered}", cwd=workplace)
    assert result.code == 0, result.output


def test_a_foreign_run_in_the_way_is_set_aside_by_name(workplace: Path) -> None:
    assert run_script("pretrain", *RUN, "max_steps=2", cwd=workplace).code == 0
    before = metrics(workplace / "checkpoints/p/r")
    result = run_script("pretrain", *RUN, "max_steps=2", "lr=0.5", cwd=workplace)
    assert result.code == 0, result.output
    assert "lr 0.002 -> 0.5" in result.output
    assert "is now r.1" in result.output
    assert metrics(workplace / "checkpoints/p/r.1") == before


def test_an_unfinished_run_is_found_under_its_time_stamped_name(whole: Path, workplace: Path) -> None:
    argv = [*RUN, "run_dir=runs/${run_name}_${now:%H-%M-%S-%f}"]
    process, connection = start_forked(_entry, "pretrain", argv, cwd=workplace)
    while process.is_alive() and not any(lines_in(file) > 3 for file in workplace.glob("runs/*/metrics.jsonl")):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, connection).code == 3
    result = run_script("pretrain", *argv, cwd=workplace)
    assert result.code == 0, result.output
    (run,) = (workplace / "runs").iterdir()
    assert final(run) == final(whole)
    # A finished run of the same name is another time's: the next one starts anew beside it.
    assert run_script("pretrain", *argv, "max_steps=2", cwd=workplace).code == 0
    assert len(list((workplace / "runs").iterdir())) == 2


def test_resume_false_never_goes_on(workplace: Path) -> None:
    code, output = interrupt(workplace, signal.SIGTERM, 4)
    assert code == 3, output
    result = run_script("pretrain", *RUN, "resume=false", "max_steps=2", cwd=workplace)
    assert result.code == 0, result.output
    assert (workplace / "checkpoints/p/r.1").is_dir()
    assert status_of(workplace / "checkpoints/p/r")["step"] == 2


def test_budget_device_and_logging_do_not_make_another_run(whole: Path, workplace: Path) -> None:
    code, output = interrupt(workplace, signal.SIGTERM, 4)
    assert code == 3, output
    changed = ["accumulation=1", "keep_last=5", "threads=1", "device=auto"]
    result = run_script("pretrain", *RUN, *changed, cwd=workplace)
    assert result.code == 0, result.output
    assert "resuming from" in result.output
    assert not (workplace / "checkpoints/p/r.1").exists()


def test_a_resumed_run_keeps_its_batch_and_a_refusal_leaves_the_config_alone(workplace: Path) -> None:
    assert run_script("pretrain", *RUN, "max_steps=2", cwd=workplace).code == 0
    stored = (workplace / "checkpoints/p/r/config.yaml").read_text()
    more = ["resume=true", "project_name=p", "run_name=r", "max_steps=4", "device=cpu"]
    for overrides in (["global_batch_size=8"], ["global_batch_size=8", "accumulation=4"], ["global_batch_size=2"]):
        result = run_script("pretrain", *more, *overrides, cwd=workplace)
        assert result.code == 2, result.output
        assert "(global_batch_size=4)" in result.output
    assert (workplace / "checkpoints/p/r/config.yaml").read_text() == stored
    assert run_script("pretrain", *more, cwd=workplace).code == 0


def test_a_refused_command_moves_nothing(workplace: Path) -> None:
    assert run_script("pretrain", *RUN, "max_steps=2", cwd=workplace).code == 0
    for override in ("data_paths=[data/nowhere]", "accumulation=3", "global_batch_size=100000"):
        assert run_script("pretrain", *RUN, override, cwd=workplace).code == 2
    assert [path.name for path in (workplace / "checkpoints/p").iterdir()] == ["r"]
    assert status_of(workplace / "checkpoints/p/r")["state"] == "done"


def test_a_signal_while_data_are_built_stops_at_once(tmp_path: Path) -> None:
    argv = [*RUN, "data_paths=[data/sudoku-9x9-easy]", "run_name=slow"]
    process, connection = start_forked(_entry, "pretrain", argv, cwd=tmp_path)
    while process.is_alive() and not (tmp_path / "data").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    result = finish(process, connection)
    assert result.code == 3, result.output
    assert "before the first step" in result.output
    assert not (tmp_path / "data/sudoku-9x9-easy").exists()
