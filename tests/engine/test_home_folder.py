"""`~` is the home folder in every key and argument that is a path, whatever shell the command came through."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from engine.cli.keys import keys_of
from engine.cli.translate import translate
from tasks.language_model.args import TrainConfig
from tasks.recursive_reasoning.args import PretrainConfig
from tests.conftest import run_script

PUZZLE = ("--config-name=cfg_pretrain_sudoku_4x4", "device=cpu", "+debug=tiny", "lr_warmup_steps=0")
TEXT = (
    "--config-name=cfg_train_cpu",
    "device=cpu",
    "n_layer=1",
    "n_embd=32",
    "n_head=2",
    "block_size=8",
    "batch_size=2",
    "eval_iters=1",
    "max_iters=1",
    "warmup_iters=0",
)
PATHS = {
    "data_paths",
    "data_paths_test",
    "out_dir",
    "run_dir",
    "resume_from",
    "prev_run_ckpt",
    "load_checkpoint",
    "gpt2_type",
    "dataset",
    "dataset_list",
    "multicontext_datasets",
    "sample_start_tokens",
}
"""Every key of both scripts that may be a path; tests below use each."""
NO_PATHS = {"script", "project_name", "run_name", "wandb_entity", "wandb_group", "wandb_tags", "device", "max_steps"}


@pytest.fixture
def home(tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with data and without runs; commands run in the empty folder `here` beside it."""
    (tmp_path / "here").mkdir()
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "data").symlink_to(workplace / "data")
    monkeypatch.setenv("HOME", str(folder))
    return folder


def run(home: Path, script: str, *words: str) -> str:
    here = home.parent / "here"
    done = run_script(script, *words, cwd=here, env={"HOME": str(home)})
    assert done.code == 0, done.output
    assert not [path for path in here.rglob("*") if "~" in path.name]
    return done.output


def test_every_key_that_says_folder_or_path_is_in_the_table() -> None:
    pattern = re.compile(r"folder|path|\bfile\b|checkpoint|\brun,|data sets", re.IGNORECASE)
    for schema in (PretrainConfig, TrainConfig):
        keys = {
            name
            for name, key in keys_of(schema).items()
            if key.kind in (str, list[str]) and (pattern.search(key.doc) or name.endswith(("_dir", "_path", "_paths")))
        }
        assert keys - NO_PATHS <= PATHS


def test_puzzle_runs(home: Path) -> None:
    (home / "rec").mkdir()
    (home / "rec/cfg_mine.yaml").write_text("defaults:\n  - cfg_pretrain_sudoku_4x4\n  - _self_\nseed: 7\n")
    (home / "keys.json").write_text(json.dumps({"data_paths_test": ["~/data/debug-sudoku-4x4"]}))
    mine = ("--config-dir=~/rec", "--config-name", "cfg_mine", *PUZZLE[1:], "--config=~/keys.json")
    run(home, "pretrain", *mine, "data_paths=[~/data/debug-sudoku-4x4]", "run_dir=~/runs/a", "max_steps=1")
    assert "\nseed: 7\n" in (home / "runs/a/config.resolved.yaml").read_text()
    words = ("--data_paths", "~/data/debug-sudoku-4x4", "--run_dir=~/runs/b", "--resume_from=~/runs/a")
    run(home, "pretrain", *mine, *words, "max_steps=2")
    # a run that branched off continues in its own folder: where it once began is not the new launch's resume_from
    assert "(step 3," in run(home, "pretrain", "run_dir=~/runs/b", "resume=true", "max_steps=3")
    run(home, "pretrain", *mine, *words[:2], "--run_dir=~/runs/c", "load_checkpoint=~/runs/a", "max_steps=1")
    timed = ("--data_path=~/data/debug-sudoku-4x4", "run_dir=~/timed/t_${now:%H%M%S%f}")
    run(home, "pretrain", *PUZZLE, *timed, "max_steps=1")
    run(home, "pretrain", *PUZZLE, *timed, "max_steps=2", "resume=true")
    assert len(list((home / "timed").iterdir())) == 1
    assert sorted(os.listdir(home / "runs")) == ["a", "b", "c"]


def test_text_runs(home: Path) -> None:
    (home / "prompt").write_text("a")
    samples = ("max_sample_tokens=1", "sample_start_tokens=FILE:~/prompt")
    run(home, "train", *TEXT, "dataset=~/data/shakespeare_char", "out_dir=~/out/a", *samples)
    listed = ("training_mode=multidataset", "dataset_list=[~/data/shakespeare_char]")
    run(home, "train", *TEXT, *listed, "--out_dir=~/out/b", "--init_from=prev_run", "prev_run_ckpt=~/out/a")
    run(home, "train", "--out_dir", "~/out/a", "--init_from=resume", "max_iters=2")
    assert {"a", "b"} <= set(os.listdir(home / "out"))


@pytest.mark.parametrize(
    ("words", "translated"),
    [
        ("hydra.sweep.dir=~/sw", "hydra.sweep.dir=HOME/sw"),
        ("--hydra.sweep.dir=~/sw", "hydra.sweep.dir=HOME/sw"),
        ("hydra.searchpath=[~/a,file://~/b]", "hydra.searchpath=[HOME/a,file://HOME/b]"),
        ("--config-dir ~/rec", "--config-dir HOME/rec"),
        ("-cp=~/rec", "-cp=HOME/rec"),
        ("run_dir=~/a", "run_dir='~/a'"),
        ("run_dir=~/${run_name}_x", "run_dir='~/${run_name}_x'"),
        ("data_paths=[~/a,b,'~/c']", "data_paths=['~/a',b,'~/c']"),
        ("+top.y=~nobody/b", "++top.y='~nobody/b'"),
        ("--data_paths=[~/a]", "data_paths=['~/a']"),
        ("+top.x=FILE:~/p", "++top.x='FILE:~/p'"),
        ("run_dir=a~/b", "run_dir=a~/b"),
    ],
)
def test_words_for_hydra(words: str, translated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "HOME")
    flags, overrides = translate(words.split(), PretrainConfig)
    assert flags + overrides == translated.split()


def test_a_list_with_blanks_and_a_home_of_nobody(workplace: Path) -> None:
    assert translate(["data_paths=[~/a, ~/b]"], PretrainConfig)[1] == ["data_paths=['~/a', '~/b']"]
    for script, base, key in (("train", TEXT, "out_dir"), ("pretrain", PUZZLE, "run_dir")):
        done = run_script(script, *base, f"{key}=~nobodyhere/x", "max_steps=1", cwd=workplace)
        assert "Traceback" not in done.output
        done = run_script(script, *base, f"{key}=new", "resume_from=~nobodyhere/y", cwd=workplace)
        assert done.code == 2
        assert "error: resume_from=~nobodyhere/y: no such checkpoint" in done.output


def test_a_recipe_of_another_script_is_named_before_its_keys(workplace: Path) -> None:
    (workplace / "rec").mkdir()
    (workplace / "rec/cfg_mine.yaml").write_text("defaults:\n  - cfg_pretrain_sudoku_4x4\n  - _self_\n")
    done = run_script("train", "--config-dir=rec", "--config-name=cfg_mine", "max_iters=1", cwd=workplace)
    assert done.code == 2
    assert "error: config cfg_mine is for pretrain.py, not for train.py: run python pretrain.py" in done.output
