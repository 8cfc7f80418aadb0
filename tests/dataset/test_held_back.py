"""Validation groups: which, never trained on, and what a run says it selects on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dataset.format import load_splits
from dataset.held_back import choose_groups, examples_of, validation_count
from dataset.sampler import EvalSampler, TrainSampler
from engine.io import UsageError
from tests.conftest import metrics, run_script
from tests.dataset.test_sampler import arrays, number_of, write

RUN = (
    "--config-name=cfg_pretrain_sudoku_4x4",
    "+debug=tiny",
    "device=cpu",
    "epochs=4",
    "eval_interval=1",
    "max_steps=40",
    "checkpoint_interval=1000",
    "project_name=p",
    "run_name=r",
)


def splits_of(folder: Path, groups: int = 60, **changes):
    train = arrays([2] * groups, [2] * (2 * groups))
    train.puzzle_identifiers[:] = 1
    return load_splits([write(folder, train, **changes)], "train")


def test_groups_held_back_are_validated_on_and_never_trained_on(tmp_path: Path) -> None:
    splits = splits_of(tmp_path / "set")
    held = choose_groups(splits, seed=0)
    assert held is not None
    assert [len(groups) for groups in held] == [3]
    only = [examples_of(split, groups) for split, groups in zip(splits, held, strict=True)]
    validated = [n for _, batch, valid in EvalSampler(splits, 4, only=only) for n in number_of(batch["inputs"][:valid])]
    assert sorted(validated) == sorted(4 * group + k for group in held[0] for k in (0, 1))  # the first puzzle of each
    assert EvalSampler(splits, 4, only=only, max_examples=5).num_examples == 5
    for order in ("hashed", "published"):
        sampler = TrainSampler(splits, seed=3, global_batch_size=4, epochs_per_iter=30, order=order, held_back=held)
        assert sampler.num_groups == 57
        rows = [number_of(sampler.batch(1, index)["inputs"]) for index in range(sampler.batches_in(1))]
        trained = set(np.concatenate(rows) // 4)
        assert trained == set(range(60)) - set(held[0].tolist())


def test_which_groups_follows_from_the_evaluation_seed_alone(tmp_path: Path) -> None:
    splits = splits_of(tmp_path / "set")
    first, again, other = (choose_groups(splits, seed=seed)[0].tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert [validation_count(groups) for groups in (2, 20, 64, 1_000, 20_000)] == [1, 1, 3, 50, 256]
    assert len(choose_groups(splits, seed=0, validation_groups=59)[0]) == 59
    with pytest.raises(UsageError, match="validation_groups=60"):
        choose_groups(splits, seed=0, validation_groups=60)


def test_groups_are_counted_over_all_data_sets(tmp_path: Path) -> None:
    splits = [*splits_of(tmp_path / "one", 40), *splits_of(tmp_path / "two", 80)]
    held = choose_groups(splits, seed=0)
    assert sum(map(len, held)) == 6
    sampler = TrainSampler(splits, seed=0, global_batch_size=4, epochs_per_iter=1, held_back=held)
    assert sampler.num_groups == 114


def test_puzzles_with_identifiers_of_their_own_are_not_held_back(tmp_path: Path) -> None:
    root = write(tmp_path / "set", arrays([2] * 30, [1] * 60))
    assert choose_groups(load_splits([root], "train"), seed=0) is None


PART = "of 8 of 16 examples (seed 0) of the test split"  # as many as RUN evaluates


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").symlink_to(tiny_data)
    return folder


def test_best_is_chosen_by_validation_and_test_is_the_final_figure(place: Path) -> None:
    done = run_script("pretrain", *RUN, cwd=place)
    assert done.code == 0, done.output
    assert "val         of 3 of 64 training groups, held back: best and early stopping use them" in done.output
    run = place / "checkpoints/p/r"
    lines = metrics(run)
    assert [line["step"] for line in lines if "val/exact_accuracy" in line] == [15, 30, 40]  # 61 groups, batches of 4
    assert [line["step"] for line in lines if "eval/exact_accuracy" in line] == [40]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["name"] == "val/exact_accuracy"
    assert summary["splits"]["eval"] == f"{PART}, at the end: the figure to report"
    assert {"val/exact_accuracy", "eval/exact_accuracy"} <= summary["results"].keys()
    best = json.loads(
        (run / "checkpoints" / (run / "checkpoints/best").read_text().strip() / "manifest.json").read_text()
    )
    assert best["metric"]["name"] == "val/exact_accuracy"


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("select_on=test", "run_name=t"), "which best and early stopping use too"),
        (("eval_interval=null", "run_name=n"), "at the end"),
    ],
)
def test_a_run_that_selects_on_test_or_on_nothing_says_so(place: Path, argv: tuple[str, ...], reason: str) -> None:
    done = run_script("pretrain", *RUN, *argv, cwd=place)
    assert done.code == 0, done.output
    assert f"eval        {PART}, {reason}" in done.output
    assert '"val/' not in (place / "checkpoints/p" / argv[1].partition("=")[2] / "metrics.jsonl").read_text()
