"""--help says type, default and meaning of every key, those of the classes that the recipe names too, without torch."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli.help import help_text
from engine.cli.keys import keys_of, source_keys
from engine.cli.recipes import find_groups, read_option
from engine.registry import family_of
from tests.conftest import ROOT, archs_of

CONFIG = ROOT / "config"
FAMILIES = {"pretrain": "recursive_reasoning", "train": "language_models", "feedforward_train": "feedback"}


def shown(script: str, recipe: str, *choices: str) -> dict[str, tuple[str, str]]:
    """key -> (its line, the first line of its meaning)."""
    text = help_text(family_of(script, "script"), find_groups([CONFIG], recipe), [CONFIG], recipe, choices)
    lines = text.split("\nKeys:\n")[1].splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith("  ") and line[2] != " "]
    return {lines[n].split()[0]: (lines[n], lines[n + 1] if n + 1 < len(lines) else "") for n in heads}


@pytest.mark.parametrize(
    ("script", "recipe"),
    [("pretrain", "cfg_pretrain"), ("pretrain", "cfg_pretrain_sudoku_4x4"), ("train", "cfg_train")]
    + [(f"{name}_train", f"cfg_{name}_train") for name in ("feedforward", "feedbackward_alt", "feedbackward_rec_alt")],
)
def test_every_key_has_type_default_and_meaning(script: str, recipe: str) -> None:
    for key, (line, meaning) in shown(script, recipe).items():
        if key.startswith(("optimizer.", "lr_scheduler.options.")):  # options of a library
            continue
        assert "[" in line, line
        assert meaning.startswith("      "), key


def test_the_default_recipe_shows_the_manager_and_the_loss() -> None:
    keys = shown("pretrain", "cfg_pretrain")
    assert keys["arch.subgoal_head.manager_period"][0] == "  arch.subgoal_head.manager_period  [integer >= 1]  4"
    assert keys["arch.loss.feudal_grad"][0] == "  arch.loss.feudal_grad  [worker|both|manager]  worker"


def test_the_chosen_architecture_is_shown() -> None:
    keys = shown("pretrain", "cfg_pretrain", "arch=trm")
    assert "arch.L_cycles" in keys
    assert not [key for key in keys if "subgoal_head" in key]


@pytest.mark.parametrize("arch", [(script, arch) for script, family in FAMILIES.items() for arch in archs_of(family)])
def test_the_source_says_what_the_class_declares(arch: tuple[str, str]) -> None:
    block = read_option(CONFIG / f"arch/{arch[1]}.yaml")["arch"]
    for name, slot in ((block["name"], "models"), (block["loss"]["name"], "losses")):
        module, _, cls = name.partition("@")
        made = getattr(importlib.import_module(module if module.startswith(slot) else f"{slot}.{module}"), cls)
        if not hasattr(made, "Config"):  # a loss without keys
            continue
        keys = source_keys(name, slot, "x.")
        assert keys == keys_of(made.Config, "x.")
        assert all(key.doc for key in keys.values())


def test_a_name_that_leads_nowhere_has_no_keys() -> None:
    assert source_keys("nope@Nope", "models", "arch.") == {}
    assert source_keys("recursive_reasoning.trm@Nope", "models", "arch.") == {}
    assert source_keys("", "models", "arch.") == {}


def test_keys_of_a_class_whose_config_or_base_is_written_in_another_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A `Config` without an annotation, and a base that is named by its module."""
    monkeypatch.setattr("engine.cli.keys.ROOT", tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    forms = {
        "plain": "from models.recursive_reasoning.trm import TRM, TRMConfig\nclass Own(TRM):\n    Config = TRMConfig\n",
        "inherited": "from models.recursive_reasoning import trm\nclass Own(trm.TRM):\n    pass\n",
        "imported": "import models.recursive_reasoning.trm as base\nclass Own(base.TRM):\n    Config = base.TRMConfig\n",
        "relative": "from . import inherited\nfrom .plain import TRMConfig\nclass Own(inherited.Own):\n    Config = TRMConfig\n",
    }
    (tmp_path / "own").mkdir()
    for name, text in forms.items():
        (tmp_path / f"own/{name}.py").write_text(text)
        expected = {key.removeprefix("x.") for key in source_keys("recursive_reasoning.trm@TRM", "models", "x.")}
        assert {key.removeprefix("x.") for key in source_keys(f"own.{name}@Own", "own", "x.")} == expected, name


def test_torch_is_not_loaded() -> None:
    code = "import sys, pretrain, train; sys.argv = ['pretrain.py', '--help']\n"
    code += "try:\n    pretrain.main(pretrain.launch, pretrain.FAMILY)\nexcept SystemExit: pass\n"
    code += """
from pathlib import Path
from engine.cli.keys import source_keys
from engine.cli.recipes import read_option
for path in Path("config/arch").glob("*.yaml"):
    block = read_option(path)["arch"]
    assert "name" not in block or source_keys(block["name"], "models", "arch."), path
    source_keys(block.get("loss", {}).get("name", ""), "losses", "arch.loss.")
assert 'torch' not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert "arch.subgoal_head.manager_period" in done.stdout
