"""What a command means: composed as Hydra composes it, with the files and lines that its values come from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from engine.cli.compose import compose_config, sweep_jobs
from engine.cli.files import defaults_lines, key_lines
from engine.cli.resolve import Trace, observe_script, resolve
from tests.conftest import ROOT

CONFIGS = [
    ("cfg_pretrain", []),
    ("cfg_pretrain_sudoku_4x4", ["arch=hrm", "arch.H_layers=1", "lr=0.5", "+debug=tiny"]),
    ("cfg_pretrain_sudoku_extreme_mlp", ["++new.key=[1,2]", "~evaluators"]),
    # where two words are of one key, the last one holds
    ("cfg_pretrain", ["lr=1", "++lr=2"]),
    ("cfg_pretrain", ["++lr=2", "lr=1"]),
    ("cfg_pretrain", ["arch.loss.q_weight=0.1", "++arch.loss={q_weight:0.2}", "arch.H_cycles=1"]),
]


def resolved(line: str, root: Path = ROOT) -> Trace:
    return resolve(root / "pretrain.py", line.split(), root=root)


@pytest.mark.parametrize(("name", "overrides"), CONFIGS)
def test_composition_equals_hydras(name: str, overrides: list[str]) -> None:
    ours = compose_config([ROOT / "config"], name, overrides)
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        theirs = compose(name, overrides=overrides)
    assert OmegaConf.to_container(ours.config) == OmegaConf.to_container(theirs)


def test_a_kept_composition_never_answers_for_other_files(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    folders, recipe = [tmp_path / "config"], tmp_path / "config/cfg_pretrain.yaml"
    assert compose_config(folders, "cfg_pretrain", []).config.seed == 0
    recipe.write_text(recipe.read_text() + "\nseed: 3\n")
    assert compose_config(folders, "cfg_pretrain", []).config.seed == 3


def test_sweeps_become_jobs() -> None:
    assert sweep_jobs(["a=1,2", "b=[3,4]"]) == [["a=1", "b=[3,4]"], ["a=2", "b=[3,4]"]]
    assert resolved("-m +sweep=seeds seed=7,8").jobs == [["+sweep=seeds", "seed=7"], ["+sweep=seeds", "seed=8"]]


@pytest.mark.parametrize(
    "line", ["--config-name cfg_pretrain --lr 1e-3", "+lr=1e-3", "-cn cfg_pretrain.yaml -m lr=1e-3,2e-3"]
)
def test_both_command_styles(line: str) -> None:
    trace = resolved(line)
    assert trace.problems == {}
    assert trace.resolved is not None
    assert (trace.resolved["lr"], trace.config.lr) == (1e-3, 1e-3)


def test_each_value_has_its_file_and_line() -> None:
    trace = resolved("-cn cfg_pretrain_sudoku_4x4 lr=1e-3")
    files = [trace.relative(file.path) for file in trace.files]
    assert files[-1] == "config/cfg_pretrain_sudoku_4x4.yaml"
    assert files.index("config/base/run.yaml") < files.index("config/arch/trm.yaml")
    file, line = trace.key_line("arch.L_cycles")
    assert file == files[-1]
    assert "L_cycles:" in (ROOT / file).read_text().splitlines()[line - 1]


@pytest.mark.parametrize(
    ("line", "link", "words"),
    [
        ("arch.L_cyles=3", "compose", "did you mean 'arch.L_cycles'?"),
        ("-cn cfg_gone", "config", "there is no cfg_gone.yaml in config/"),
        ("lr=fast", "schema", "lr: expected number"),
        ("+sweep=seeds", "schema", "add -m"),
    ],
)
def test_a_command_that_leads_nowhere(line: str, link: str, words: str) -> None:
    assert words in resolved(line).problems[link]


def test_a_script_is_observed_by_importing_it(tmp_path: Path) -> None:
    script = observe_script(ROOT / "pretrain.py")
    assert [(main.config_path, main.config_name) for main in script.mains] == [("config", "cfg_pretrain")]
    assert "@hydra.main" in (ROOT / "pretrain.py").read_text().splitlines()[script.mains[0].line - 1]
    plain = tmp_path / "plain.py"
    plain.write_text("raise SystemExit('imported')\n")
    assert observe_script(plain).mains == []


def test_lines_of_yaml() -> None:
    text = "defaults:\n  - base/run\n  - arch: trm\n  - _self_\narch:\n  lr: 1\n"
    assert key_lines(text)["arch.lr"] == 6
    assert defaults_lines(text) == [("", "base/run", 2), ("arch", "trm", 3), ("", "_self_", 4)]
