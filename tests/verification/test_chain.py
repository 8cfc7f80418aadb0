"""Following a command: launchers, spellings, composition as Hydra does it, classes through bases and re-exports."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from hydra import compose as hydra_compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from tests.conftest import ROOT
from verification.chain import build_chain
from verification.command import parse
from verification.compose import compose, digest, sweep_jobs
from verification.schemas import dataclass_of
from verification.source import ClassInfo, Repo
from verification.yaml_lines import defaults_lines, line_of


@pytest.mark.parametrize(
    ("line", "launcher", "script", "processes", "first"),
    [
        ("python pretrain.py lr=1", "python", "pretrain.py", 1, "lr=1"),
        ("A=1 B='x y' python3.11 -u pretrain.py a", "python", "pretrain.py", 1, "a"),
        ("./pretrain.py a", "python", "pretrain.py", 1, "a"),
        ("torchrun --nproc-per-node=4 pretrain.py a", "torchrun", "pretrain.py", 4, "a"),
        ("torchrun --standalone --nproc_per_node 2 --nnodes 3 pretrain.py a", "torchrun", "pretrain.py", 6, "a"),
        ("torchrun --nproc-per-node=gpu pretrain.py a", "torchrun", "pretrain.py", None, "a"),
        ("python -m torch.distributed.run --nproc-per-node 2 pretrain.py a", "torchrun", "pretrain.py", 2, "a"),
        ("uv run python pretrain.py a", "python", "pretrain.py", 1, "a"),
        ("python -m dataset.build_sudoku_dataset a", "python", None, 1, "a"),
        ("bash -c x", "bash", None, 1, "-c"),
    ],
)
def test_commands(line: str, launcher: str, script: str | None, processes: int | None, first: str) -> None:
    command = parse(shlex.split(line))
    assert (command.launcher, command.script, command.processes) == (launcher, script, processes)
    assert command.arguments[0] == first


def test_environment_and_quotes() -> None:
    command = parse(shlex.split("A=1 B='x y' python pretrain.py 'run_name=\"a b\"'"))
    assert command.env == {"A": "1", "B": "x y"}
    assert command.arguments == ('run_name="a b"',)


CONFIGS = [
    ("cfg_pretrain", []),
    ("cfg_pretrain_sudoku_4x4", ["arch=hrm", "arch.H_layers=1", "lr=0.5", "+debug=tiny"]),
    ("cfg_pretrain_sudoku_extreme_mlp", ["++new.key=[1,2]", "~evaluators"]),
]


@pytest.mark.parametrize(("name", "overrides"), CONFIGS)
def test_composition_equals_hydras(name: str, overrides: list[str]) -> None:
    folders = [ROOT / "config"]
    ours = compose(folders, name, overrides, digest(folders))
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        theirs = hydra_compose(name, overrides=overrides)
    with open_dict(theirs):
        theirs.pop("hydra", None)
    assert OmegaConf.to_container(ours.config) == OmegaConf.to_container(theirs)


def test_a_memo_never_answers_for_other_files(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    folders = [tmp_path / "config"]
    recipe = tmp_path / "config/cfg_pretrain.yaml"
    assert compose(folders, "cfg_pretrain", [], digest(folders)).config.lr == 1e-4
    recipe.write_text(recipe.read_text().replace("lr: 1.0e-4", "lr: 2.0e-4"))
    assert compose(folders, "cfg_pretrain", [], digest(folders)).config.lr == 2e-4


def test_sweeps_become_jobs() -> None:
    assert sweep_jobs(["a=1,2", "b=[3,4]"]) == [["a=1", "b=[3,4]"], ["a=2", "b=[3,4]"]]


def test_the_chain_ends_at_the_class() -> None:
    chain = build_chain(shlex.split("python pretrain.py -cn cfg_pretrain_sudoku_4x4 lr=1e-3"), Repo(ROOT))
    assert chain.problems == {}
    assert chain.model is not None
    assert chain.model.cls is not None
    assert [cls.name for cls in chain.model.cls.mro] == ["TRM", "RecursiveModel", "ACTModel"]
    assert chain.model.cls.variable("ACT_MODE")[0] == "dynamic"  # type: ignore[index]
    assert isinstance(chain.script.task, ClassInfo)  # type: ignore[union-attr]
    assert chain.files[-1] == "config/cfg_pretrain_sudoku_4x4.yaml"
    assert chain.steps == 20_000 // 64
    assert chain.key_line("arch.L_cycles")[0] == "config/cfg_pretrain_sudoku_4x4.yaml"


@pytest.mark.parametrize(
    "line",
    [
        "python pretrain.py --config-name cfg_pretrain --lr 1e-3",
        "python pretrain.py --config-name=cfg_pretrain +lr=1e-3",
        "python pretrain.py -cn cfg_pretrain.yaml -m lr=1e-3,2e-3",
    ],
)
def test_both_command_styles(line: str) -> None:
    chain = build_chain(shlex.split(line), Repo(ROOT))
    assert chain.problems == {}
    assert chain.resolved is not None
    assert chain.resolved["lr"] == 1e-3


def test_config_classes_are_made_without_torch() -> None:
    made = dataclass_of(Repo(ROOT), "models.recursive_reasoning.trm", "TRMConfig")
    assert made(num_heads=4).num_heads == 4  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="does not divide"):
        made(num_heads=7)  # type: ignore[call-arg]


def test_reexports_aliases_and_overlays() -> None:
    repo = Repo(ROOT, {"models/mine.py": "from models.recursive_reasoning.trm import TRM as Other\nAlias = Other\n"})
    for name in ("Other", "Alias"):
        found = repo.find_class("models.mine", name)
        assert isinstance(found, ClassInfo)
        assert found.file == "models/recursive_reasoning/trm.py"
    assert "did you mean 'Other'" in str(repo.find_class("models.mine", "Othre"))


def test_lines_of_yaml() -> None:
    text = "defaults:\n  - base/run\n  - arch: trm\n  - _self_\narch:\n  lr: 1\n"
    assert line_of(text, "arch.lr") == 6
    assert defaults_lines(text) == [("", "base/run", 2), ("arch", "trm", 3), ("", "_self_", 4)]
