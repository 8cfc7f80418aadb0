"""Argv in both styles to Hydra's. Reference for quoting: Hydra's parser reads back what was typed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from engine.cli.translate import Groups, quote, translate
from engine.config import RunConfig
from engine.errors import UsageError


@dataclass(kw_only=True)
class Optim:
    """A block."""

    lr: float = 0.1
    name: str = "adam"


@dataclass(kw_only=True)
class Arch:
    """What a block without declared types may have."""

    parts: list[str] = field(default_factory=list)
    weights: list[float] | None = None
    depth: int = 1


@dataclass(kw_only=True)
class Schema(RunConfig):
    """Keys of every declared type."""

    NESTED_SCHEMAS: ClassVar[Mapping[str, type]] = {"arch": Arch}

    arch: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-3
    steps: int = 1
    prompt: str = ""
    mode: Literal["cosine", "linear"] = "cosine"
    data_paths: list[str] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)
    use_wandb: bool = False
    no_grad: bool = False
    optim: Optim = field(default_factory=Optim)
    sets: dict[str, Optim] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


GROUPS = Groups({"arch": ["hrm", "trm"], "debug": ["tiny"]}, frozenset({"arch"}))
ALIASES = {"checkpoint_path": "run_dir", "loss": "arch.loss", "parts": "arch.parts"}

# argv (one word per item) -> Hydra's argv
LINES: list[tuple[list[str], list[str]]] = [
    # Hydra's style goes through
    ([], []),
    (["lr=1e-4"], ["lr=1e-4"]),
    (["data_paths=[a,b]", "evaluators=[]"], ["data_paths=[a,b]", "evaluators=[]"]),
    (["arch.L_cycles=6"], ["arch.L_cycles=6"]),
    (["arch=trm"], ["arch=trm"]),
    (["++any.key=1"], ["++any.key=1"]),
    (["~lr"], ["~lr"]),
    (["~lr=1"], ["~lr=1"]),
    (["prompt='a, b'"], ["prompt='a, b'"]),
    (["prompt="], ["prompt="]),
    (["unknown=1"], ["unknown=1"]),
    (["hydra.sweep.dir=x", "hydra/launcher=joblib"], ["hydra.sweep.dir=x", "hydra/launcher=joblib"]),
    (["arch@other=trm"], ["arch@other=trm"]),
    # one plus: force-add for keys, exactly as the defaults list wants it for groups
    (["+run_name=x"], ["++run_name=x"]),
    (["+arch.new=1"], ["++arch.new=1"]),
    (["+debug=tiny"], ["+debug=tiny"]),
    (["debug=tiny"], ["+debug=tiny"]),
    (["+arch=trm"], ["arch=trm"]),
    # aliases, also of the leading part
    (["checkpoint_path=out"], ["run_dir=out"]),
    (["+checkpoint_path=out"], ["++run_dir=out"]),
    (["~loss.weight"], ["~arch.loss.weight"]),
    (["loss.feudal_loss_weight=0.1"], ["arch.loss.feudal_loss_weight=0.1"]),
    (["--loss.feudal_loss_weight", "0.1"], ["arch.loss.feudal_loss_weight=0.1"]),
    (["--checkpoint_path", ".out/x"], ["run_dir=.out/x"]),
    # Hydra's flags pass through, in front
    (["lr=1", "--config-name", "cfg_x"], ["--config-name", "cfg_x", "lr=1"]),
    (["--config-name=cfg_x", "lr=1"], ["--config-name=cfg_x", "lr=1"]),
    (["-cn", "cfg_x", "-cp", "/c", "-cd", "d"], ["-cn", "cfg_x", "-cp", "/c", "-cd", "d"]),
    (["--config-dir", "d", "--config-path=e"], ["--config-dir", "d", "--config-path=e"]),
    (["--cfg", "job", "--resolve", "-p", "arch"], ["--cfg", "job", "--resolve", "-p", "arch"]),
    (["-c", "job", "--package=arch"], ["-c", "job", "--package=arch"]),
    (["--info", "lr=1"], ["--info=all", "lr=1"]),
    (["--info", "defaults"], ["--info=defaults"]),
    (["-m", "lr=1,2"], ["-m", "lr=1,2"]),
    (["lr=1,2", "--multirun"], ["--multirun", "lr=1,2"]),
    (["--version"], ["--version"]),
    (["--hydra-help", "-r", "--run"], ["--hydra-help", "-r", "--run"]),
    (["-sc", "install=bash"], ["-sc", "install=bash"]),
    # numbers
    (["--lr", "1e-4"], ["lr=1e-4"]),
    (["--lr=3"], ["lr=3"]),
    (["--lr", "-1.5E-3"], ["lr=-1.5E-3"]),
    (["--max_steps", "10"], ["max_steps=10"]),
    (["--max-steps", "10"], ["max_steps=10"]),
    (["--max_steps", "null"], ["max_steps=null"]),
    (["--max_steps", "None"], ["max_steps=null"]),
    (["--lr", "1,2"], ["lr='1,2'"]),
    (["-m", "--lr", "1,2"], ["-m", "lr=1,2"]),
    (["--steps", "ten"], ["steps=ten"]),
    (["--optim.lr", "0.5"], ["optim.lr=0.5"]),
    # text survives whatever it contains
    (["--prompt", "The animal"], ["prompt='The animal'"]),
    (["--prompt", "a, b; c='d'"], ["prompt='a, b; c=\\'d\\''"]),
    (["--prompt=x=y"], ["prompt='x=y'"]),
    (["--prompt", "lr=3"], ["prompt='lr=3'"]),
    (["--prompt", "007"], ["prompt='007'"]),
    (["--prompt", "true"], ["prompt='true'"]),
    (["--prompt", "null"], ["prompt='null'"]),
    (["--prompt", ""], ["prompt=''"]),
    (["--prompt=--dashes"], ["prompt='--dashes'"]),
    (["-m", "--prompt", "a,b"], ["-m", "prompt='a,b'"]),
    (["--run_name", "1e-3"], ["run_name='1e-3'"]),
    (["--run_dir", "output/train_animal_w_o_0.3"], ["run_dir=output/train_animal_w_o_0.3"]),
    (["--run_dir", "/path/to/model"], ["run_dir=/path/to/model"]),
    (["--run_dir", ".out/gsm8k/ff_2025-08-17_10-00-00"], ["run_dir=.out/gsm8k/ff_2025-08-17_10-00-00"]),
    # choices and bools
    (["--mode", "linear"], ["mode=linear"]),
    (["--use_wandb"], ["use_wandb=true"]),
    (["--use-wandb", "lr=1"], ["use_wandb=true", "lr=1"]),
    (["--use_wandb", "False"], ["use_wandb=false"]),
    (["--use_wandb", "1"], ["use_wandb=true"]),
    (["--use_wandb=yes"], ["use_wandb=true"]),
    (["--no-use_wandb"], ["use_wandb=false"]),
    (["--no_use_wandb"], ["use_wandb=false"]),
    (["--no-use-wandb"], ["use_wandb=false"]),
    (["--no_grad"], ["no_grad=true"]),
    (["--no-no_grad"], ["no_grad=false"]),
    (["--resume", "True"], ["resume=true"]),
    (["--resume"], ["resume=true"]),
    (["--resume", "auto"], ["resume=auto"]),
    (["--no-resume"], ["resume=false"]),
    # lists
    (["--data_paths", "a", "b"], ["data_paths=[a,b]"]),
    (["--data_paths", "a b", "1k"], ["data_paths=['a b','1k']"]),
    (["--data_paths", "a", "--lr", "1"], ["data_paths=[a]", "lr=1"]),
    (["--data_paths", "a", "lr=1"], ["data_paths=[a]", "lr=1"]),
    (["--data_paths", "a", "x=y", "+z=1"], ["data_paths=[a,'x=y']", "++z=1"]),
    (["--data_paths", "[a,b]"], ["data_paths=[a,b]"]),
    (["--data_paths=a,b"], ["data_paths=['a,b']"]),
    (["--probs", "0.5", "0.5"], ["probs=[0.5,0.5]"]),
    (["--probs=0.5,0.5"], ["probs=[0.5,0.5]"]),
    (["--arch.parts", "a", "b", "--lr", "1"], ["arch.parts=[a,b]", "lr=1"]),
    (["--parts", "a"], ["arch.parts=[a]"]),
    (["--arch.parts=[a,b]"], ["arch.parts=[a,b]"]),
    (["--arch.parts", "[a,b]", "lr=1"], ["arch.parts=[a,b]", "lr=1"]),
    (["--arch.weights", "1", "2"], ["arch.weights=[1,2]"]),
    (["--arch.weights=null"], ["arch.weights=null"]),
    # keys below a free block: read from the text
    (["--arch.L_cycles", "4"], ["arch.L_cycles=4"]),
    (["--arch.L-cycles", "4"], ["arch.L_cycles=4"]),
    (["--arch.mlp_t", "True"], ["arch.mlp_t=True"]),
    (["--arch.sizes", "[1,2]"], ["arch.sizes=[1,2]"]),
    (["--arch.note", "a, b"], ["arch.note='a, b'"]),
    (["--arch.mlp_t"], ["arch.mlp_t=true"]),
    (["--arch.mlp_t", "--lr", "1"], ["arch.mlp_t=true", "lr=1"]),
    (["--arch.mlp_t", "lr=1"], ["arch.mlp_t=true", "lr=1"]),
    (["--no-arch.mlp_t"], ["arch.mlp_t=false"]),
    (["--arch", "trm"], ["arch=trm"]),
    (["--debug", "tiny"], ["+debug=tiny"]),
    (["--hydra.job.name", "x"], ["hydra.job.name=x"]),
    # text in Hydra's style that Hydra itself cannot read, though nothing in it looks special
    (["run_name=~/runs/a"], ["run_name='~/runs/a'"]),
    (["run_name=Übung"], ["run_name='Übung'"]),
    (["run_name=plain"], ["run_name=plain"]),
    # both at once
    (
        ["arch=trm", "--lr", "1", "+run_name=x", "--use_wandb"],
        ["arch=trm", "lr=1", "++run_name=x", "use_wandb=true"],
    ),
]


@pytest.mark.parametrize(("argv", "expected"), LINES, ids=[" ".join(argv) or "empty" for argv, _ in LINES])
def test_translation(argv: list[str], expected: list[str]) -> None:
    flags, overrides = translate(argv, Schema, groups=GROUPS, aliases=ALIASES)
    assert flags + overrides == expected


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--lrr", "1"], ["--lrr", "did you mean 'lr'"]),
        (["--max_step", "1"], ["did you mean 'max_steps'"]),
        (["--config-nam", "x"], ["did you mean 'config"]),
        (["--zzz"], ["--zzz", "--help"]),
        (["--archh.H_cycles=3"], ["--archh.H_cycles", "did you mean 'arch'"]),
        (["--archh.H_cycles", "3"], ["--archh.H_cycles", "did you mean 'arch'"]),
        (["--zzz.H_cycles", "3"], ["--help"]),
        (["-x"], ["unexpected flag '-x'"]),
        (["stray"], ["unexpected word 'stray'"]),
        (["--lr"], ["--lr needs a value"]),
        (["--lr", "--use_wandb"], ["--lr needs a value"]),
        (["--config-name"], ["--config-name needs a value"]),
        (["--use_wandb=maybe"], ["true or false", "maybe"]),
        (["--no-lr"], ["unknown flag --no-lr"]),
        (["--no-use_wandb=true"], ["takes no value"]),
        (["--data_paths"], ["--data_paths needs a value"]),
        (["--use_wandb", "stray"], ["stray"]),
        (["--lr.x", "1"], ["--lr.x"]),
        (["--config", "/nowhere.json"], ["/nowhere.json", "No such file"]),
    ],
)
def test_refusals_are_one_line_that_names_the_flag(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        translate(argv, Schema, groups=GROUPS, aliases=ALIASES)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a b",
        "it's",
        'say "x"',
        "a,b",
        "a=b",
        "back\\slash",
        "end\\",
        "q\\'",
        "007",
        "1e5",
        ".5",
        "",
        "#c;d",
        "é",
        "$x",
        "True",
        "null",
        "nan",
        "-1",
        "a:b",
        "{a}",
        "[a]",
        " lead",
        "two\nlines",
        "~x",
        "a/b.c-d",
        "../up",
        "x@y",
        "%",
        "Inf",
    ],
)
def test_quoted_text_is_read_back_by_hydra(text: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quote(text)}").value() == text


def test_json_comes_before_argv_and_is_flattened_by_key(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    nested = {
        "arch": "trm",
        "optim": {"lr": 2.0},
        "data_paths": ["a b", "c"],
        "checkpoint_path": None,
        "use-wandb": True,
    }
    file.write_text(json.dumps(nested))
    flags, words = translate(["lr=1", "--config", str(file), "-m"], Schema, groups=GROUPS, aliases=ALIASES)
    assert flags == ["-m"]
    assert words == [
        "arch=trm",
        "++optim.lr=2.0",
        "++data_paths=['a b',c]",
        "++run_dir=null",
        "++use_wandb=true",
        "lr=1",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{\n  lr: 1}", ["line 2 column 3"]),
        ("[1]", ["one object"]),
        ('{"lrr": 1}', ["unknown key 'lrr'", "'lr'"]),
        ('{"optim": [1]}', ["optim: expected a block {...} of keys, got [1]"]),
        ('{"sets": {"a": "b"}}', ['sets.a: expected a block {...} of keys, got "b"']),
        ('{"training": null}', ["training: expected a block {...} of keys, got null"]),
        ('{"lr": 1, "optim": {"lr": 2}, "lr": 1}', ["has the key 'lr' twice"]),
        ('{"optim": {"lr": 2, "lr": 3}}', ["has the key 'lr' twice"]),
        ('{"traning": {}}', ["unknown key 'traning': did you mean 'training'?"]),
        ('{"training": {"zz": 1}}', ["unknown key 'training.zz': did you mean 'training.lr'?"]),
    ],
)
def test_a_bad_json_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        translate([f"--config={file}"], Schema, aliases={"training.lr": "lr"})
    assert all(word in str(caught.value) for word in [str(file), *words])


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("training.zz=1", "unknown key 'training.zz': did you mean 'training.lr'?"),
        ("+training.lrr=1", "unknown key 'training.lrr': did you mean 'training.lr'?"),
        ("training=1", "unknown key 'training': did you mean 'training.lr'?"),
        ("--training.zz=1", "unknown flag --training.zz: did you mean 'training.lr'?"),
    ],
)
def test_an_unknown_key_of_a_section_is_answered_by_its_keys(word: str, error: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(error)}"):
        translate([word], Schema, aliases={"training.lr": "lr"})
