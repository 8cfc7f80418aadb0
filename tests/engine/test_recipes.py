"""Recipes of one's own: what they leave out counts by the schema, and what is wrong in them names file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.cli.help import help_text
from engine.cli.recipes import find_groups
from engine.schema import with_defaults
from tasks.language_model.args import TrainConfig
from tasks.recursive_reasoning.args import PretrainConfig
from tasks.recursive_reasoning.family import FAMILY
from tests.conftest import ROOT, run_script
from verification.static import verify_command

MINE = "defaults:\n  - cfg_pretrain_sudoku_4x4\n  - _self_\n"
LEAN = (
    "defaults:\n  - base/run\n  - base/pretrain\n  - arch: trm\n  - _self_\n"
    "data_paths: [data/debug-sudoku-4x4]\nglobal_batch_size: 4\nepochs: 1\n"
)
ALONE = "script: pretrain.py\ndefaults:\n  - arch: trm\n  - _self_\ndata_paths: [data/debug-sudoku-4x4]\nglobal_batch_size: 4\n"
SHORT = ("device=cpu", "max_steps=2", "lr_warmup_steps=1", "arch.L_cycles=1", "arch.hidden_size=32", "arch.num_heads=4")


def launch(folder: Path, text: str | bytes, *words: str, script: str = "pretrain"):
    (folder / "rec").mkdir(exist_ok=True)
    path = folder / "rec/cfg_mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return run_script(script, "--config-dir", "rec", "--config-name", "cfg_mine", *words, cwd=folder)


@pytest.mark.parametrize("recipe", [LEAN, ALONE, "\ufeff" + LEAN])
def test_what_a_recipe_leaves_out_has_the_default_of_the_schema(workplace: Path, recipe: str) -> None:
    done = launch(workplace, recipe, *SHORT, "weight_decay=0.2", "--beta1", "0.8", "run_dir=run", "epochs=1")
    assert done.code == 0, done.output
    resolved = (workplace / "run/config.resolved.yaml").read_text()
    assert "\nlr: 0.0001\n" in resolved
    assert "\nweight_decay: 0.2\n" in resolved
    assert "\nbeta1: 0.8\n" in resolved
    assert not (workplace / "outputs").exists()
    again = launch(workplace, recipe, *SHORT, "weight_decay=0.2", "--beta1", "0.8", "run_dir=run", "epochs=1")
    assert "is now run.1" in again.output  # the same run, and finished


def test_defaults_are_filled_in_to_any_depth() -> None:
    full = with_defaults(PretrainConfig, {"arch": {"name": "x"}, "loss": {}})
    assert full["loss"] == {"feudal_loss_weight": 0.1}
    assert full["arch"] == {"name": "x"}
    assert "data_paths" not in full  # it has no default
    full = with_defaults(TrainConfig, {"lr_scheduler": {"name": "cosine"}})
    assert full["lr_scheduler"]["name"] == "cosine"
    assert "options" in full["lr_scheduler"]


@pytest.mark.parametrize("word", ["arch=hrm", "+arch=hrm", "arch=hrm +debug=tiny"])
def test_a_group_can_be_chosen(workplace: Path, word: str) -> None:
    done = launch(workplace, LEAN, *SHORT, *word.split(), "run_dir=run")
    assert done.code == 0, done.output
    assert "recursive_reasoning.hrm@HRM" in (workplace / "run/config.resolved.yaml").read_text()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (MINE + "max_steps:\t3\n\tlr: 3\n", "cfg_mine.yaml line 5 column 1: found a tab character"),
        (MINE + "lr: 1\nlr: 2\n", "cfg_mine.yaml line 5 column 1: found duplicate key lr"),
        (MINE + "seed: 010\n", "cfg_mine.yaml line 4: YAML reads 010 as 8: quote text, or write 8"),
        (MINE + "lr: [1, 2\n", "cfg_mine.yaml line 5 column 1: "),
        (MINE + "lr: *base\n", "cfg_mine.yaml line 4 column 5: found undefined alias 'base'"),
        (MINE + 'lr: !!python/object/apply:os.system ["true"]\n', "cfg_mine.yaml line 4 column 5: could not determine"),
        ("- a\n- b\n", "cfg_mine.yaml: expected keys with values"),
        ("just text\n", "cfg_mine.yaml: expected keys with values"),
        ("", "cfg_mine.yaml is empty"),
        ("# nothing but this\n", "cfg_mine.yaml is empty"),
        (b"\xff\xfe\x00", "cfg_mine.yaml is not valid UTF-8"),
        ("defaults: 5\nlr: 3\n", "cfg_mine.yaml: defaults: expected a list, found 5"),
        ("defaults:\n  - cfg_mine\n  - _self_\n", "its defaults form a cycle: cfg_mine -> cfg_mine"),
        (
            "defaults:\n  - cfg_pretrain_sudoku_4x5\n",
            "there is no config cfg_pretrain_sudoku_4x5: did you mean 'cfg_pre",
        ),
        (MINE.replace("- _self_", "- arch: trn\n  - _self_"), "there is no arch=trn: did you mean 'trm'?"),
        (MINE + "lrr: 3\n", "error: rec/cfg_mine.yaml line 4: unknown key 'lrr': did you mean 'lr'?"),
        (MINE + "arch: 5\n", "error: rec/cfg_mine.yaml line 4: arch: expected a block of keys, got 5"),
        (MINE + "arch:\n  hiden_size: 5\n", "rec/cfg_mine.yaml line 5: unknown key 'arch.hiden_size': did you mean"),
        (MINE + "seed: 1\nlr: -1\n", "error: rec/cfg_mine.yaml line 5: lr=-1.0: expected 0 or more"),
        (MINE + "hydra: {mode: MULTIRUN}\n", "write -m"),
        (MINE.replace("pretrain_sudoku_4x4", "train_cpu"), "config cfg_mine is for train.py, not for pretrain.py"),
    ],
)
def test_what_is_wrong_names_file_and_line(workplace: Path, recipe: str | bytes, message: str) -> None:
    done = launch(workplace, recipe, "device=cpu")
    assert done.code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output
    assert len(done.output.splitlines()) == 1


def test_what_the_command_sets_itself_is_not_of_the_file(workplace: Path) -> None:
    done = launch(workplace, MINE + "lr: 1\n", "device=cpu", "lr=-1")
    assert done.output == "error: lr=-1.0: expected 0 or more\n"


def test_a_retired_recipe_names_what_to_use_instead(workplace: Path) -> None:
    done = run_script("pretrain_etrm", "--config-name=cfg_pretrain_etrmtrm_arc_agi_1", cwd=workplace)
    assert done.code == 2
    assert "was retired: use cfg_pretrain_etrm_arc_agi_1 with arch.encoder_type=recurrent" in done.output


def test_a_recipe_of_the_other_script_is_named_as_that(workplace: Path) -> None:
    done = launch(workplace, MINE, script="train")
    assert done.code == 2
    assert "config cfg_mine is for pretrain.py, not for train.py: run python pretrain.py" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config-name", "rec/cfg_mine.yaml"), "write --config-dir rec --config-name cfg_mine"),
        (("--config-dir", "rec", "--config-name", "cfg_mime"), "did you mean 'cfg_mine'?"),
        (("--config-dir", "wreck", "--config-name", "cfg_mine"), "wreck"),
        (("--config-path", "rec", "--config-name", "cfg_mine"), f"'{ROOT}/rec'"),
    ],
)
def test_a_recipe_that_is_not_there(workplace: Path, words: tuple[str, ...], message: str) -> None:
    (workplace / "rec").mkdir()
    (workplace / "rec/cfg_mine.yaml").write_text(MINE)
    done = run_script("pretrain", *words, cwd=workplace)
    assert done.code == 2
    assert message in done.output
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize("words", [("--config-path", "config"), ("--config-path=config",), ("-cp", f"{ROOT}/config")])
def test_a_config_path_is_relative_to_the_script(workplace: Path, words: tuple[str, ...]) -> None:
    done = run_script("pretrain", *words, "--config-name=cfg_pretrain_sudoku_4x4", "--cfg", "job", cwd=workplace)
    assert done.code == 0, done.output
    assert done.output.startswith("script: pretrain.py")


def test_the_path_verification_finds_it_too(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "rec").mkdir()
    (workplace / "rec/cfg_mine.yaml").write_text(LEAN)
    monkeypatch.chdir(workplace)
    words = ["python", str(ROOT / "pretrain.py"), "--config-dir", "rec", "--config-name", "cfg_mine", *SHORT]
    report = verify_command([*words, "arch=hrm", "beta2=0.9"], root=ROOT)
    assert not [finding for finding in report.findings if finding.level == "FAIL"], report.findings


def test_help_of_a_recipe_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "cfg_mine.yaml").write_text(LEAN + "lr: 0.0123\n")
    groups = find_groups([ROOT / "config", tmp_path], "cfg_mine")
    assert groups.selected == {"arch"}
    assert "lr  [number >= 0]  0.0123" in help_text(FAMILY, groups, [ROOT / "config", tmp_path], "cfg_mine")
