"""Runs that commit 57047ee wrote resume, are recognised and give the same figures with the code of today.

tests/fixtures/runs_before_repair has two runs and their data: `pretrain` is done at step 8 of 100, `train` was stopped
by SIGTERM after step 10 of 4000. A change of the checkpoint, the identity or the data that makes this test fail also
breaks the runs that users have.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from engine.config import RunConfig
from engine.io import sha256_json
from engine.run.identity import complete
from engine.run.request import RunRequest
from tasks.language_model.args import TrainConfig
from tests.conftest import ROOT, metrics, run_script, status_of

FIXTURES = ROOT / "tests/fixtures/runs_before_repair"
PRETRAIN = """
    --config-name=cfg_pretrain_sudoku_4x4 +debug=tiny device=cpu epochs=8 eval_interval=2 checkpoint_interval=4
    arch.hidden_size=8 arch.num_heads=2 arch.puzzle_emb_ndim=8 arch.puzzle_emb_len=1 puzzle_emb_lr=0.01 ema=true
    keep_last=1 run_dir=pretrain
""".split()
TRAIN = """
    --config-name=cfg_train_cpu device=cpu dataset=plain lr_decay_iters=4000 max_iters=4000 warmup_iters=2
    eval_interval=4000 eval_iters=2 batch_size=4 log_interval=1 arch.n_layer=1 arch.n_head=2 arch.n_embd=16
    arch.block_size=8 learning_rate=1e-3 out_dir=train
""".split()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A working directory as that commit left it."""
    shutil.copytree(FIXTURES, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path


def check_that_it_went_on(run: Path, output: str, at: int, to: int) -> None:
    assert f"resuming from step_{at}" in output
    assert "with changes" not in output
    stored = metrics(FIXTURES / run.name)
    lines = metrics(run)
    assert lines[: len(stored)] == stored
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, to + 1))
    assert all(line["train/loss"] < 3.5 for line in lines if "train/loss" in line)
    status = status_of(run)
    assert (status["state"], status["step"]) == ("done", to)


def test_pretrain_goes_on_by_its_folder(old: Path) -> None:
    result = run_script("pretrain", "resume=true", "run_dir=pretrain", "device=cpu", "max_steps=12", cwd=old)
    assert result.code == 0, result.output
    check_that_it_went_on(old / "pretrain", result.output, 8, 12)


def test_train_goes_on_by_its_folder(old: Path) -> None:
    argv = ("--init_from=resume", "--out_dir=train", "device=cpu", "--max_steps=14")
    result = run_script("train", *argv, cwd=old)
    assert result.code == 0, result.output
    check_that_it_went_on(old / "train", result.output, 10, 14)


def test_the_same_command_goes_on(old: Path) -> None:
    result = run_script("train", *TRAIN, "max_steps=14", cwd=old)
    assert result.code == 0, result.output
    check_that_it_went_on(old / "train", result.output, 10, 14)


def test_the_same_command_recognises_a_finished_run(old: Path) -> None:
    result = run_script("pretrain", *PRETRAIN, "max_steps=8", "skip_finished=true", cwd=old)
    assert result.code == 0, result.output
    assert "done already (step 8)" in result.output
    assert sorted(path.name for path in old.iterdir()) == ["data", "pretrain", "train"]


@pytest.mark.parametrize(
    ("run", "step", "name", "value"),
    [("pretrain", 8, "loss", 2.0031774044036865), ("train", 10, "eval/val_loss", 2.71864914894104)],
)
def test_evaluation_gives_the_figure_of_then(old: Path, run: str, step: int, name: str, value: float) -> None:
    result = run_script("scripts/evaluate", run, "--device=cpu", cwd=old)
    assert result.code == 0, result.output
    written = json.loads((old / run / f"evaluation_step_{step}.json").read_text())
    assert written["results"][name] == pytest.approx(value, rel=1e-5)


def _kept(run: Path) -> tuple[str, str]:
    stored = (run / "config.yaml").read_text()
    return re.findall(r"^data_order: (.*)$", stored, re.M)[0], re.findall(r"^eval_seed: (.*)$", stored, re.M)[0]


@pytest.mark.parametrize("how", ["by its folder", "by the same command"])
def test_a_run_keeps_the_data_order_it_began_with(old: Path, how: str) -> None:
    """What came later (hashed data order, its own seed for evaluation subsets) is for runs that begin later."""
    argv = ("resume=true", "run_dir=pretrain", "device=cpu") if how == "by its folder" else PRETRAIN
    identity = json.loads((old / "pretrain/identity.json").read_text())["identity"]
    for last in (10, 12):  # twice: what was kept is kept again
        status = status_of(old / "pretrain")
        (old / "pretrain/status.json").write_text(json.dumps({**status, "state": "interrupted"}))
        result = run_script("pretrain", *argv, f"max_steps={last}", cwd=old)
        assert result.code == 0, result.output
        assert "resuming from" in result.output
        assert "with changes" not in result.output
        assert _kept(old / "pretrain") == ("published", "${seed}")
        assert json.loads((old / "pretrain/identity.json").read_text())["identity"] == identity
    assert [path.name for path in old.iterdir() if path.name.startswith("pretrain")] == ["pretrain"]


def _rewrite(run: Path, *, without: tuple[str, ...]) -> None:
    """Make `run` one whose command left `without` out: that commit stored what the command composed, and no defaults."""
    stored = json.loads((run / "identity.json").read_text())
    for key in without:
        block, _, last = key.rpartition(".")
        node = stored["config"]
        for part in block.split(".") if block else ():
            node = node[part]
        del node[last]
    stored["identity"] = sha256_json(stored["config"])
    (run / "identity.json").write_text(json.dumps(stored))
    status = status_of(run)
    (run / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))


@pytest.mark.parametrize(
    ("extra", "without"),
    [
        (("~arch.head_dim",), ("arch.head_dim",)),
        (("~arch.loss.precision",), ("arch.loss.precision",)),
        ((), ("arch.rope_theta", "grad_clip", "final_eval", "evaluators", "loss")),
    ],
)
def test_what_was_left_to_defaults_is_the_same_run(old: Path, extra: tuple[str, ...], without: tuple[str, ...]) -> None:
    """A deleted key, a sparse recipe: the identity of then has no defaults in it."""
    _rewrite(old / "pretrain", without=without)
    result = run_script("pretrain", *PRETRAIN, *extra, "max_steps=12", cwd=old)
    assert result.code == 0, result.output
    check_that_it_went_on(old / "pretrain", result.output, 8, 12)


def test_a_value_that_differs_is_another_run(old: Path) -> None:
    """What the command says of a key that came later counts, and so does a default that is not what was stored."""
    for word in ("select_on=validation", "arch.rope_theta=9000"):
        status = status_of(old / "pretrain")
        (old / "pretrain/status.json").write_text(json.dumps({**status, "state": "interrupted"}))
        result = run_script("pretrain", *PRETRAIN, word, "max_steps=1", cwd=old)
        assert result.code == 0, result.output
        assert "pretrain: new run" in result.output, result.output
    assert sorted(path.name for path in old.glob("pretrain*")) == ["pretrain", "pretrain.1", "pretrain.2"]


@pytest.mark.parametrize("folder", ["checkpoints/pretrain", "checkpoints/None"])
def test_a_run_is_found_under_the_name_it_had(old: Path, folder: str) -> None:
    """Names hold a digest of the identity, and a run without a project lay in a folder None."""
    run = old / folder / "pretrain_sudoku_4x4-0123abcd"
    run.parent.mkdir(parents=True)
    (old / "pretrain").rename(run)
    _rewrite(run, without=("arch.head_dim",))
    project = ["project_name=null"] if folder.endswith("None") else []
    result = run_script("pretrain", *PRETRAIN[:-1], *project, "~arch.head_dim", "max_steps=12", cwd=old)
    assert result.code == 0, result.output
    assert "resuming from step_8" in result.output
    assert [path.name for path in (old / "checkpoints").rglob("status.json")] == ["status.json"]


def test_an_option_that_a_recipe_came_to_set_later() -> None:
    """optimizer=sophia sets p=1 now; a run begun without it continues with its library's 0.01."""
    config = TrainConfig(arch={}, optimizer={"name": "sophiah", "options": {"betas": [0.9, 0.99], "p": 1.0}})
    ours = {"optimizer": config.optimizer, "seed": 1}
    known = {"optimizer": {"name": "sophiah", "options": {"betas": [0.9, 0.99]}}, "seed": 1}
    assert config.before["optimizer.options.p"] == 0.01
    request = RunRequest(Path("run"), ours, "pretrain", later=config.before)
    assert request.matches_identity(known)
    assert not request.matches_identity({**known, "seed": 2})
    assert not replace(request, later=RunConfig.BEFORE).matches_identity(known)
    stored = OmegaConf.create(known)
    complete(stored, config.before)
    assert stored.optimizer.options.p == 0.01
    assert "optimizer.options.p" not in TrainConfig(arch={}).before


def test_a_batch_that_was_not_recorded_is_kept(old: Path) -> None:
    """Checkpoints of then name no batch: config and number of processes do."""
    environment = json.loads((old / "train/environment.json").read_text())
    (old / "train/environment.json").write_text(json.dumps({**environment, "world_size": 2}))
    result = run_script("train", "--init_from=resume", "--out_dir=train", "device=cpu", "--max_steps=11", cwd=old)
    assert result.code == 0, result.output
    assert "this run's batch of 8 rows is kept: accumulation 2 with 1 process(es)" in result.output
    assert json.loads((old / "train/environment.json").read_text())["batch_rows"] == 8


def test_a_batch_that_nobody_knows_is_said(old: Path) -> None:
    (old / "train/environment.json").unlink()
    result = run_script("train", *TRAIN, "max_steps=11", cwd=old)
    assert result.code == 0, result.output
    assert "warning: train does not record how many processes it ran with" in result.output


def test_a_stored_config_that_leaves_keys_to_defaults_takes_them_at_a_resume(old: Path) -> None:
    path = old / "train/config.yaml"
    kept = [
        line for line in path.read_text().splitlines() if not re.match(r"(resume|device|max_steps|grad_clip):", line)
    ]
    path.write_text("\n".join(kept) + "\n")
    argv = ("--init_from=resume", "--out_dir=train", "device=cpu", "--max_steps=12")
    result = run_script("train", *argv, cwd=old)
    assert result.code == 0, result.output
    check_that_it_went_on(old / "train", result.output, 10, 12)
    refused = run_script("train", *argv, "max_step=13", cwd=old)
    assert refused.code == 2, refused.output
    assert "max_steps" in refused.output.splitlines()[-1]
