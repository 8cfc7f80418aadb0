"""Runs of pretrain_etrm.py: killed and resumed, on two ranks, evaluated and drawn, begun from another run's decoder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dataset.build_arc_dataset import main as build_tables
from dataset.build_arc_dataset_encoder import main as build_demonstrations
from tests.conftest import _entry, finish, metrics, run_ranks, run_script, start_forked

SHAPE = """
    arch.hidden_size=32 arch.num_heads=2 arch.expansion=1.0 arch.H_cycles=2 arch.L_cycles=2 arch.L_layers=1
    arch.pos_encodings=rope_2d device=cpu global_batch_size=4 eval_batch_size=4 epochs=8 lr_warmup_steps=2
    eval_interval=null ema=false project_name=p log_interval=1
""".split()
RUN = [
    *SHAPE,
    *"data_paths=[data/demonstrations] run_name=r max_steps=8 checkpoint_interval=2 diagnostics_interval=2".split(),
    *"stats_interval=2 arch.encoder_type=hybrid_variational arch.encoder_num_layers=1".split(),
]
MODES = {
    "dynamic": ["arch.halt_max_steps=3", "arch.halt_exploration_prob=0.7", "accumulation=2"],
    "fixed": ["arch=etrm_online", "arch.num_act_steps=2"],
}
TASKS = (
    "--generated --families few --canvas 6 --num-train 8 --num-test 4 --num-novel 0 --num-aug 0 --output-dir".split()
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 12 tasks twice: 4 held out whole, and with an embedding for each, whose demonstrations are trained on."""
    root = tmp_path_factory.mktemp("etrm") / "data"
    assert build_demonstrations([*TASKS, str(root / "demonstrations")]) == 0
    assert build_tables([*TASKS, str(root / "tables")]) == 0
    return root


@pytest.fixture
def place(tmp_path: Path, data: Path) -> Path:
    (tmp_path / "data").symlink_to(data)
    return tmp_path


@pytest.fixture(scope="module", params=MODES)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: Path
) -> tuple[Path, list[str]]:
    """(an uninterrupted run, its command) of each mode."""
    folder, words = tmp_path_factory.mktemp("whole"), [*RUN, *MODES[request.param]]
    (folder / "data").symlink_to(data)
    result = run_script("pretrain_etrm", *words, cwd=folder)
    assert result.code == 0, result.output
    return folder / "checkpoints/p/r", words


def weights(run: Path, *files: str) -> dict[str, bytes]:
    last = run / "checkpoints" / (run / "checkpoints/latest").read_text().strip()
    return {
        name: tensor.numpy().tobytes()
        for file in files
        for name, tensor in load_file(last / f"{file}.safetensors").items()
    }


def test_kill_nine_and_the_same_command_again(whole: tuple[Path, list[str]], place: Path) -> None:
    run, words = whole
    mine = place / "checkpoints/p/r"
    for lines in (2, 5):
        process, connection = start_forked(_entry, "pretrain_etrm", words, cwd=place)
        file = mine / "metrics.jsonl"
        while process.is_alive() and (len(file.read_text().splitlines()) if file.exists() else 0) < lines:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert finish(process, connection).code == -signal.SIGKILL
    result = run_script("pretrain_etrm", *words, cwd=place)
    assert result.code == 0, result.output
    assert weights(mine, "model", "state") == weights(run, "model", "state")
    assert metrics(mine) == metrics(run)


def test_two_ranks_are_one_process(whole: tuple[Path, list[str]], place: Path) -> None:
    run, words = whole
    for result in run_ranks("pretrain_etrm", *words, "accumulation=1", cwd=place):
        assert result.code == 0, result.output
    ours, theirs = (load_file(one / "step_8/model.safetensors") for one in (place / "checkpoints/p/r", run))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours) <= 1e-6
    for line, other in zip(metrics(place / "checkpoints/p/r"), metrics(run), strict=True):
        for name in ("train/loss", "train/kl", "train/fresh", "train/grad_coverage", "eval/loss"):
            assert line.get(name) == pytest.approx(other.get(name), abs=1e-5), (name, line["step"])
