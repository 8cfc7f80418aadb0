"""Runs of pretrain_etrm.py: killed and resumed, on two ranks, evaluated and drawn, begun from another run's decoder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dataset.build_arc_dataset import main as build_tables
from dataset.build_arc_dataset_encoder import main as build_demonstrations
from tests.conftest import _entry, finish, last_checkpoint, metrics, run_ranks, run_script, start_forked, weights

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
    assert weights(last_checkpoint(mine)) == weights(last_checkpoint(run))
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


# --- evaluated, drawn, begun from a decoder -------------------------------------------------------------------------------


def test_scripts_take_the_run_or_name_what_they_expect(whole: tuple[Path, list[str]]) -> None:
    run, _ = whole
    result = run_script("scripts/evaluate", str(run), cwd=run.parents[2])
    assert result.code == 0, result.output
    measured = json.loads((run / "evaluation_step_8.json").read_text())["results"]
    summary = json.loads((run / "summary.json").read_text())["results"]
    assert {name: summary[name] for name in measured if not name.startswith("time")} == measured
    others = run.parents[2] / "others"
    shutil.copytree(run.parents[2] / "data/demonstrations", others)
    result = run_script("scripts/evaluate", str(run), "--data", str(others), "--json", "o.json", cwd=run.parents[2])
    assert result.code == 0, result.output
    again = json.loads((run.parents[2] / "o.json").read_text())["results"]
    named = {name.replace("ARC_i_clean", "ARC_i_unchecked"): value for name, value in measured.items()}
    assert again == named, "tests of another folder are not known to be apart from this run's training"
    result = run_script("scripts/evaluate", str(run), "--max-groups", "2", "--batch-size", "2", cwd=run.parents[2])
    assert result.code == 0, result.output
    few = json.loads((run / "evaluation_step_8_groups-2.json").read_text())
    assert few["results"]["eval/ARC_i_clean/tasks"] == few["settings"]["final_eval_max_groups"] == 2
    refused = run_script("scripts/evaluate", str(run), "--halting", "fixed", cwd=run.parents[2])
    assert refused.code == 2
    assert "--halting has no meaning for a run of pretrain_etrm.py" in refused.output


def test_its_answers_are_drawn_and_predicted(whole: tuple[Path, list[str]]) -> None:
    run, _ = whole
    place = run.parents[2]
    drawn = run_script("scripts/visualize", str(run), "--example", "1", "--out", "one.png", cwd=place)
    assert drawn.code == 0, drawn.output
    assert (place / "one.png").stat().st_size > 1000
    file = sorted((place / "data/demonstrations/tasks/evaluation").iterdir())[1]
    result = run_script("scripts/predict", str(run), str(file), "--out", "answer.json", cwd=place)
    assert result.code == 0, result.output
    record = json.loads((place / "answer.json").read_text())
    assert (record["protocol"], record["leakage"], record["fit"]["copies"]) == ("i", "clean", 1)
    last = json.loads((run / "evaluations/step_8_arc_tasks.json").read_text())
    assert record["tasks"][file.stem] == last["tasks"][file.stem], "as the run's own evaluation has it"
    asked = json.loads(file.read_text())
    for test in asked["test"]:
        del test["output"]
    (place / file.name).write_text(json.dumps(asked))  # as a task is that nobody has solved
    result = run_script("scripts/predict", str(run), file.name, "--out", "unsolved.json", cwd=place)
    assert result.code == 0, result.output
    answers = [
        [
            [answer["grid"] for answer in test["answers"]]
            for test in json.loads((place / name).read_text())["tasks"][file.stem]["test"]
        ]
        for name in ("answer.json", "unsolved.json")
    ]
    assert answers[0] == answers[1]
    refused = run_script("scripts/predict", str(run), str(file), "--steps", "3", cwd=place)
    assert refused.code == 2
    assert "--steps has no meaning for a run of pretrain_etrm.py" in refused.output


DECODER = [*SHAPE, "arch.halt_max_steps=3", "max_steps=2"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A folder with a run of pretrain.py, which has an embedding for each task, those held out too."""
    folder = tmp_path_factory.mktemp("decoder")
    (folder / "data").symlink_to(data)
    table = [
        "--config-name=cfg_pretrain_arc_agi_1",
        "data_paths=[data/tables]",
        "arch.puzzle_emb_ndim=32",
        "run_name=table",
    ]
    result = run_script("pretrain", *table, *DECODER, cwd=folder)
    assert result.code == 0, result.output
    return folder


def tensors(run: Path) -> dict[str, bytes]:
    stored = weights(last_checkpoint(run))
    return {name: value for name, value in stored.items() if name.startswith("model.") and "puzzle_emb" not in name}


def test_a_decoder_that_has_seen_the_tests_marks_the_result(decoder: Path) -> None:
    words = ["data_paths=[data/demonstrations]", "load_pretrained_decoder=checkpoints/p/table", *DECODER]
    refused = run_script("pretrain_etrm", *words, "run_name=r", cwd=decoder)
    assert refused.code == 2
    assert "DAT530" in refused.output
    assert "contaminated decoder: trained on 4 of 4 test tasks" in refused.output
    # frozen, all of it: two steps of the encoder alone
    result = run_script("pretrain_etrm", *words, "run_name=r", "freeze_decoder_steps=2", "verify=warn", cwd=decoder)
    assert result.code == 0, result.output
    assert "step_2 (step 2); contaminated decoder: trained on 4 of 4 test tasks" in result.output
    source, ours = (tensors(decoder / "checkpoints/p" / name) for name in ("table", "r"))
    assert all(ours[name] == value for name, value in source.items())
    assert any("inner.encoder." in name for name in ours.keys() - source.keys())
    summary = json.loads((decoder / "checkpoints/p/r/summary.json").read_text())
    assert "contaminated decoder" in summary["splits"]["eval"]
    assert "eval/ARC_iii_contaminated/pass@1" in summary["results"]
    hop = [*words[:1], "load_pretrained_decoder=checkpoints/p/r", *DECODER]
    second = run_script("pretrain_etrm", *hop, "verify=warn", "max_steps=1", "run_name=s", cwd=decoder)
    assert second.code == 0, second.output
    assert "contaminated decoder: trained on 4 of 4 test tasks" in second.output, "by way of another run"
    again = run_script("pretrain_etrm", *words, "arch.L_cycles=1", "verify=warn", "run_name=q", cwd=decoder)
    assert again.code == 2
    assert "was trained with arch.L_cycles=2: set the same, or allow_decoder_mismatch=true" in again.output
    again = run_script("pretrain_etrm", *words, "arch.hidden_size=64", "verify=warn", "run_name=q", cwd=decoder)
    assert again.code == 2
    assert "expected the decoder's arch.* keys" in again.output
    (decoder / "checkpoints/p/table").rename(decoder / "checkpoints/p/gone")
    gone = run_script("pretrain_etrm", *words, "verify=warn", "run_name=q", cwd=decoder)
    assert gone.code == 2
    assert "load_pretrained_decoder=checkpoints/p/table: no such run or checkpoint" in gone.output
    evaluated = run_script("scripts/evaluate", "checkpoints/p/r", cwd=decoder)
    assert evaluated.code == 0, evaluated.output
    assert "eval/ARC_i_unchecked/pass@1" in evaluated.output
    assert not (decoder / "checkpoints/p/q").exists()
