"""A stopped run of train.py resumes bit for bit, in each mode of training and of sampling."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.conftest import _entry, finish, metrics, run_ranks, run_script, start_forked, status_of, weights
from tests.train.conftest import TINY, attempt, train

MIXTURE = ("training_mode=multidataset", "dataset_list=[plain,other]", "dataset_sampling_probs=[0.3,0.7]")
MODES = {
    "single": (),
    "without_replacement": ("sampling_method=without_replacement",),
    "sequential": ("sampling_method=sequential",),
    "mixture": MIXTURE,
    "changing_mixture": (*MIXTURE, "dataset_sampling_probs_final=[0.9,0.1]"),
    "own_vocabularies": (*MIXTURE, "multidataset_wte=true"),
    "interleaved": (
        "training_mode=multidataset",
        "dataset_list=[plain,other]",
        "dataset_interleaving=true",
        "dataset_sampling_probs=[1,2]",
        "dataset_interleaving_shuffle=true",
    ),
    "contexts": ("training_mode=multicontext", "multicontext_datasets=[plain,classes]"),
    "plateau": (
        "lr_scheduler=plateau",
        "lr_scheduler.options.patience=1",
        "lr_scheduler.options.threshold=9",
        "lr_scheduler.options.factor=0.9",
    ),
    "schedulefree": ("optimizer=schedulefree_adamw",),
    "muon": ("optimizer=muon",),
    "random_evaluation": ("eval_mode=random",),
    "dropout": ("arch.dropout=0.3", "accumulation=2"),
}
LONGER = ("max_iters=12", "lr_decay_iters=12", "eval_interval=4", "keep_last=9")


def final(run: Path) -> dict[str, bytes]:
    return weights(run / "ckpt_last.pt")


@pytest.mark.parametrize("mode", MODES)
def test_twelve_is_five_and_seven(place: Path, mode: str) -> None:
    pytest.importorskip("pytorch_optimizer") if mode == "schedulefree" else None
    argv = (*LONGER, *MODES[mode])
    whole = train(place, *argv, "out_dir=out/whole", run="out/whole")
    train(place, *argv, "max_steps=5")
    result = run_script("train", "--init_from=resume", "--out_dir=out/r", "max_steps=12", cwd=place)
    assert "resuming from step_5" in result.output, result.output
    ours = [line for line in metrics(place / "out/r") if not (line["step"] == 5 and "eval/val_loss" in line)]
    assert ours == whole
    assert final(place / "out/r") == final(place / "out/whole")


def test_a_time_budget_and_the_rest(place: Path) -> None:
    train(place, *LONGER, "out_dir=out/whole", run="out/whole")
    stopped = attempt(place, *LONGER, "max_seconds=1e-9")
    assert "step 1: max_seconds=1e-09 is up" in stopped.output, stopped.output
    result = run_script("train", "--resume=true", "--out_dir=out/r", "max_seconds=null", cwd=place)
    assert "resuming from step_1" in result.output, result.output
    assert final(place / "out/r") == final(place / "out/whole")


def test_another_batch_size_counts_on(place: Path) -> None:
    train(place, *LONGER, "max_steps=4")
    result = run_script("train", "--init_from=resume", "--out_dir=out/r", "accumulation=3", "max_steps=8", cwd=place)
    assert "accumulation" in result.output, result.output
    tokens = {line["step"]: line["data/tokens"] for line in metrics(place / "out/r") if "data/tokens" in line}
    assert tokens[8] == 4 * tokens[4]


@pytest.mark.parametrize("mode", ["single", "mixture", "contexts"])
def test_kill_nine(place: Path, mode: str) -> None:
    argv = (*LONGER, *MODES[mode], "checkpoint_interval=1")
    whole = train(place, *argv, "out_dir=out/whole", run="out/whole")
    process, connection = start_forked(_entry, "train", [*TINY, *argv], cwd=place)
    file = place / "out/r/metrics.jsonl"
    while process.is_alive() and (not file.exists() or file.read_text().count("\n") < 7):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process, connection).code == -signal.SIGKILL
    assert train(place, *argv) == whole
    assert final(place / "out/r") == final(place / "out/whole")


def test_sigterm_saves_and_the_same_command_goes_on(place: Path) -> None:
    argv = ("max_iters=4000", "eval_interval=4000")
    process, connection = start_forked(_entry, "train", [*TINY, *argv], cwd=place)
    file = place / "out/r/metrics.jsonl"
    while process.is_alive() and (not file.exists() or file.read_text().count("\n") < 20):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, connection).code == 3
    status = status_of(place / "out/r")
    assert status["state"] == "interrupted"
    result = attempt(place, *argv, f"max_steps={status['step'] + 2}")
    assert f"resuming from step_{status['step']}" in result.output


def test_early_stopping(place: Path) -> None:
    lines = train(
        place,
        "max_iters=60",
        "eval_interval=3",
        "--patience=2",
        "learning_rate=1e-9",
        "min_lr=0",
        "early_stop_min_delta=0.5",
    )
    assert lines[-1]["step"] < 20
    assert "stopped_early" in (place / "out/r/summary.json").read_text()


def test_a_loss_that_is_not_finite_ends_the_run(place: Path) -> None:
    result = attempt(
        place,
        "learning_rate=1e30",
        "min_lr=0",
        "grad_clip=0",
        "max_iters=60",
        "warmup_iters=0",
        "max_skipped_steps=3",
        "eval_interval=60",
        "optimizer=sgd",
    )
    assert result.code == 1
    assert "not finite" in result.output


def test_a_resume_never_switches_data(place: Path, texts: Path) -> None:
    (place / "data").unlink()
    shutil.copytree(texts, place / "data")
    train(place, "max_iters=12", "max_steps=3")
    tokens = np.fromfile(place / "data/plain/train.bin", dtype="<u2")
    build_again(place / "data/plain", tokens)
    result = attempt(place, "max_iters=12", "resume=true", "max_steps=6")
    assert result.code == 2
    assert "data/plain is not what this run began with" in result.output


def build_again(folder: Path, tokens: np.ndarray) -> None:
    """Other text of the same characters, as a user who builds the set from another file would have it."""
    from dataset.text.build import TextBuild, build
    from dataset.text.meta import load_tokenizer

    text = load_tokenizer(folder).decode(tokens)
    source = folder.parent / "again.txt"
    source.write_text(text[::-1] + text)
    build(TextBuild(output_dir=folder, inputs=(source,), source="again", tokenizer="char", overwrite=True))


def test_another_number_of_processes_keeps_the_batch(place: Path) -> None:
    both = [*TINY, *LONGER]
    train(place, *LONGER, "out_dir=out/whole", "max_steps=8", "accumulation=2", run="out/whole")  # the same batch
    for result in run_ranks("train", *both, "max_steps=4", cwd=place):
        assert result.code == 0, result.output
    result = run_script("train", *both, "max_steps=8", "resume=true", cwd=place)
    assert result.code == 0, result.output
    assert "this run's batch of 8 rows is kept: accumulation 2 with 1 process(es)" in result.output
    assert "8 = 4 rows x accumulation 2 x 1 rank(s)" in result.output
    ours, theirs = ({line["step"]: line for line in metrics(place / run)} for run in ("out/r", "out/whole"))
    assert ours[8]["data/tokens"] == theirs[8]["data/tokens"]
    assert ours[8]["eval/val_loss"] == pytest.approx(theirs[8]["eval/val_loss"], abs=1e-4)

    train(place, *LONGER, "out_dir=out/one", "max_steps=2", run="out/one")
    before = (place / "out/one/metrics.jsonl").read_bytes()
    refused = run_ranks("train", *both, "out_dir=out/one", "resume=true", cwd=place)
    assert [result.code for result in refused] == [2, 2]
    assert "this run's batch is 4 rows, and 2 processes of batch_size=4 cannot add up to it" in refused[0].output
    assert "choose one process, or resume=true and batch_size=2 (the same batch)" in refused[0].output
    assert "Traceback" not in refused[0].output
    assert (place / "out/one/metrics.jsonl").read_bytes() == before


def test_a_table_of_another_data_set_waits(place: Path) -> None:
    """With its own vocabulary for each data set, a batch of one leaves the tables of the other as they are."""
    argv = (*MIXTURE, "multidataset_wte=true", "dataset_interleaving=true", "dataset_sampling_probs=null")
    argv = (*argv, "checkpoint_interval=1", "keep_last=9", "weight_decay=0.5", "arch.wte_weight_tying=false")
    train(place, *argv, "max_iters=4")
    tables = [load_file(place / f"out/r/step_{step}/model.safetensors") for step in (1, 2, 3)]
    names = [[n for n in tables[0] if f"tables.{k}." in n or f"lm_head.{k}." in n] for k in (0, 1)]
    assert all(names)
    for first, second, used in ((0, 1, 1), (1, 2, 0)):
        for k in (0, 1):
            same = [tables[first][name].equal(tables[second][name]) for name in names[k]]
            assert not any(same) if k == used else all(same)


def test_figures_that_cover_something_else_are_not_compared(place: Path) -> None:
    """A loss over more windows is no worse than one over few: what is best begins anew, with a warning."""
    train(place, "max_iters=3", "warmup_iters=1", "eval_iters=1")
    resume = ("train", "--init_from=resume", "--out_dir=out/r", "learning_rate=9")  # what follows is much worse
    same = run_script(*resume, "max_iters=6", cwd=place)
    assert same.code == 0, same.output
    assert (same.code, (place / "out/r/ckpt.pt").resolve().name) == (0, "step_3")
    assert "chosen anew" not in same.output
    more = run_script(*resume, "max_iters=9", "eval_iters=3", cwd=place)
    assert (more.code, (place / "out/r/ckpt.pt").resolve().name) == (0, "step_9"), more.output
    assert "windows of 8 tokens now, not" in more.output.replace("\n", " ")
