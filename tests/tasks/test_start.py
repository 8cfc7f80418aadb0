"""load_checkpoint: the weights of another run, its puzzle embeddings by the puzzles' names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.writing import SplitArrays, write_dataset
from engine.run.load_run import find_checkpoint
from tasks.recursive_reasoning.start import TABLE, match_rows
from tests.conftest import run_script

SMALL = """--config-name=cfg_pretrain_sudoku_4x4 device=cpu +debug=tiny project_name=p global_batch_size=4 max_steps=3 epochs=8
    arch.mlp_t=false arch.pos_encodings=rope arch.puzzle_emb_ndim=32 arch.puzzle_emb_len=1 puzzle_emb_lr=0.1
    lr_warmup_steps=0 verify=off""".split()


def write_puzzles(root: Path, names: list[str], source: str = "files") -> None:
    """One example for each puzzle; the tests are the first two again."""
    made = {}
    for split, count in (("train", len(names)), ("test", 2)):
        labels = np.random.default_rng(len(names)).integers(2, 6, (count, 16))
        steps = np.arange(count + 1)
        made[split] = SplitArrays(np.ones_like(labels), labels, np.arange(1, count + 1), steps, steps)
    identifiers = ["<blank>", *names]
    card = {"source": source, "name": "named"}
    write_dataset(root, made, vocab_size=6, seq_len=16, card=card, identifiers=identifiers)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_puzzles(tmp_path / "data/old", ["a", "b", "c", "d"])
    write_puzzles(tmp_path / "data/new", ["e", "c", "f", "a", "g"])
    first = run_script("pretrain", *SMALL, "data_paths=[data/old]", "run_name=first", "ema=true", cwd=tmp_path)
    assert first.code == 0, first.output
    return tmp_path


def start_of(place: Path, *words: str) -> tuple[str, Path]:
    """Output and folder of a run that trains nothing visible: its learning rates are 0."""
    frozen = ("lr=0", "puzzle_emb_lr=0", "max_steps=1", "run_name=second")
    done = run_script("pretrain", *SMALL, *frozen, *words, cwd=place)
    assert done.code == 0, done.output
    return done.output, place / "checkpoints/p/second"


def test_weights_of_another_run_and_embeddings_by_name(place: Path) -> None:
    output, run = start_of(place, "data_paths=[data/new]", "load_checkpoint=checkpoints/p/first")
    source, made = find_checkpoint(place / "checkpoints/p/first"), find_checkpoint(run)
    averaged = {**source.model, **(source.ema or {})}
    trunk = {name: value for name, value in averaged.items() if name != TABLE}
    assert all(torch.equal(made.model[name], value) for name, value in trunk.items())
    old, new = source.model[TABLE], made.model[TABLE]
    assert torch.equal(new[[2, 4]], old[[3, 1]]), "c and a, wherever they stand"
    assert torch.equal(new[[1, 3, 5]], old.mean(0).expand(3, -1)), "the mean for what is new"
    assert not torch.equal(old[1], old[3])
    assert "puzzle table: 3 of 6 rows by name, the others are the mean of its 5" in output
    assert "first/checkpoints/step_3 (step 3, averaged)" in output
    assert made.step == 1, "steps count from the beginning"


def test_a_resume_does_not_ask_for_it(place: Path) -> None:
    words = ("data_paths=[data/new]", "load_checkpoint=checkpoints/p/first")
    start_of(place, *words)
    (place / "checkpoints/p/first").rename(place / "gone")
    again = run_script("pretrain", "run_name=second", "project_name=p", "resume=true", "max_steps=2", cwd=place)
    assert again.code == 0, again.output
    assert "resuming from step_1" in again.output
    refused = run_script("pretrain", *SMALL, *words, "run_name=third", cwd=place)
    assert refused.code == 2
    assert "load_checkpoint=checkpoints/p/first: no such run or checkpoint" in refused.output
    assert not (place / "checkpoints/p/third").exists()


def test_a_run_of_another_script_is_not_resumed(place: Path) -> None:
    """It was told that a key of its config is unknown."""
    other = run_script("pretrain_etrm", "device=cpu", "resume=true", "run_dir=checkpoints/p/first", cwd=place)
    assert other.code == 2
    assert "checkpoints/p/first is a run of pretrain.py, not of pretrain_etrm.py" in other.output


def test_another_model_or_file_is_refused(place: Path) -> None:
    words = (*SMALL, "data_paths=[data/new]", "run_name=r")
    wide = run_script("pretrain", *words, "load_checkpoint=checkpoints/p/first", "arch.hidden_size=64", cwd=place)
    assert wide.code == 2
    assert "is [32] in the checkpoint, [64] in this model: expected the arch.* keys of that run" in wide.output
    assert "which was trained with arch.hidden_size=32" in wide.output
    for value, more, reason in (
        ("", (), "load_checkpoint is empty: name a run or a checkpoint"),
        ("checkpoints/p/first", ("resume_from=checkpoints/p/first",), "begins at step 0 with the weights alone"),
    ):
        said = run_script("pretrain", *words, f"load_checkpoint={value}", *more, cwd=place)
        assert said.code == 2
        assert reason in said.output
    (place / "step_5").write_bytes(b"PK")
    public = run_script("pretrain", *words, "load_checkpoint=step_5", cwd=place)
    assert public.code == 2
    assert "scripts/convert.py import" in public.output
    deeper = run_script("pretrain", *words, "load_checkpoint=checkpoints/p/first", "arch.L_cycles=3", cwd=place)
    assert deeper.code == 0, deeper.output
    assert "note: the weights were trained with arch.L_cycles=" in deeper.output


def test_a_branch_onto_other_puzzles_is_refused(place: Path) -> None:
    write_puzzles(place / "data/renamed", ["a", "b", "d", "c"])
    words = (*SMALL, "resume_from=checkpoints/p/first/step_3", "max_steps=4", "ema=true")
    refused = run_script("pretrain", *words, "data_paths=[data/renamed]", "run_name=r", cwd=place)
    assert refused.code == 2
    assert "load_checkpoint=checkpoints/p/first/step_3 takes its weights and matches them by name" in refused.output
    wide = run_script("pretrain", *words, "data_paths=[data/old]", "run_name=w", "arch.hidden_size=64", cwd=place)
    assert wide.code == 2
    assert "arch.hidden_size: 32 in the checkpoint, 64 now" in wide.output
    assert "start again with resume=false and no resume_from" in wide.output, "the two contradict each other"
    same = run_script("pretrain", *words, "data_paths=[data/old]", "run_name=s", cwd=place)
    assert same.code == 0, same.output


def test_names_that_are_not_here(place: Path) -> None:
    (place / "data/old").rename(place / "data/elsewhere")
    output, run = start_of(place, "data_paths=[data/new]", "load_checkpoint=checkpoints/p/first")
    assert "1 of 6 rows by name, the others are the mean of its 5 (the names of the puzzles" in output
    table = find_checkpoint(run).model[TABLE]
    assert torch.equal(table[1:], find_checkpoint(place / "checkpoints/p/first").model[TABLE].mean(0).expand(5, -1))


def test_a_name_of_another_generated_set_is_another_puzzle(place: Path) -> None:
    write_puzzles(place / "data/made", ["c", "a"], source="generated")
    output, _ = start_of(place, "data_paths=[data/made]", "load_checkpoint=checkpoints/p/first")
    assert "1 of 3 rows by name, the others are the mean of its 5\n" in output


def test_a_table_of_one_row_stays() -> None:
    table = torch.randn(1, 4)
    made, report = match_rows(table, [""], [""], 1)
    assert torch.equal(made, table)
    assert report == "puzzle table: 1 of 1 rows by name"
    first = match_rows(torch.arange(3.0).view(3, 1), ["", "x", "x"], ["", "x"], 2)[0]
    assert json.dumps(first.tolist()) == "[[0.0], [1.0]]", "of a name that stands twice the first"


def test_an_evaluator_that_cannot_read_the_data_is_refused_before_training(place: Path) -> None:
    words = (*SMALL, "data_paths=[data/old]", "run_name=r", "evaluators=[{name: arc@ARC}]")
    refused = run_script("pretrain", *words, cwd=place)
    assert refused.code == 2
    assert "data/old/test_puzzles.json does not exist: arc@ARC reads" in refused.output
    assert not (place / "checkpoints/p/r").exists()
    assert run_script("pretrain", *words, "final_eval=false", cwd=place).code == 0, "nobody is asked"
