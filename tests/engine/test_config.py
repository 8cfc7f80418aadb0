"""Composed config to schema, the identity of a run, and the merge of a resumed run with its command line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from engine.cli.keys import keys_of
from engine.cli.recipes import read_file, read_option
from engine.config import NOT_IDENTITY, RunConfig, load_synced_config, source_of
from engine.errors import UsageError
from engine.fields import flatten
from engine.io import sha256_json
from engine.run.identity import identity_of
from engine.run.stored import merge_for_resume
from tests.conftest import archs_of

ROOT = Path(__file__).resolve().parents[2]


@dataclass(kw_only=True)
class Schema(RunConfig):
    """A tiny script's keys."""

    lr: float = 1.0
    arch: dict[str, Any] = field(default_factory=dict)


def composed(**changes: Any) -> DictConfig:
    return OmegaConf.create({"lr": 1, "run_name": "r", "run_dir": "out/${run_name}", "arch": {"width": 2}} | changes)


REPEATED = {
    # The review guide reads from an arch file how its model halts, and which encoder it has.
    "config/arch": {"arch.halt_max_steps", "arch.halt_exploration_prob", "arch.no_ACT_continue"}
    | {"arch.num_act_steps", "arch.encoder_type"},
    # Batch and epochs are one decision, the length of a run, which people edit together.
    "config": {"global_batch_size", "epochs"},
}
"""Folder -> the keys that may stand in a file of it with the value that they have without it."""


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of config/, into which `without_its_own_keys` may write."""
    return Path(shutil.copytree(ROOT / "config", tmp_path_factory.mktemp("copy") / "config"))


def without_its_own_keys(defaults: list[Any], folder: Path) -> dict[str, Any]:
    """Dotted key -> its value by a defaults list in a file of `folder`, were there no other line in the file."""
    alone = folder / "alone.yaml"
    alone.write_text(OmegaConf.to_yaml({"defaults": defaults}))
    content = read_option(alone)[folder.name]
    return dict(flatten({"arch": content} if folder.name == "arch" else content))


def repeated(content: dict[str, Any], folder: Path) -> set[str]:
    """Keys of a file of `folder` that have the same value without it.

    A recipe's keys of `arch` hold for whichever architecture is chosen: one repeats a default only if it is that of all.
    """
    defaults = content.pop("defaults")
    lists = [defaults]
    if arch := next((entry["arch"] for entry in defaults if isinstance(entry, dict) and "arch" in entry), None):
        family = read_option(folder / f"arch/{arch}.yaml")["arch"]["name"].partition(".")[0]
        lists = [
            [{"arch": name} if entry == {"arch": arch} else entry for entry in defaults] for name in archs_of(family)
        ]
    without = [without_its_own_keys(each, folder) for each in lists]
    given = flatten({"arch": content} if folder.name == "arch" else content)
    return {
        key
        for key, value in given
        if not isinstance(value, dict) and all(key in each and each[key] == value for each in without)
    }


SHIPPED = [*sorted((ROOT / "config").glob("[ab]*/*.yaml")), *sorted((ROOT / "config").glob("cfg_*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_each_default_stands_in_its_dataclass_only(path: Path, configs: Path) -> None:
    allowed = REPEATED.get(path.parent.relative_to(ROOT).as_posix(), set())
    assert repeated(read_file(path), configs / path.parent.relative_to(ROOT / "config")) <= allowed


@pytest.mark.parametrize(
    ("file", "line", "key"),
    [
        ("arch/trm.yaml", "rope_theta: 10000.0", "arch.rope_theta"),
        ("arch/trm.yaml", "loss: {q_weight: 0.5}", "arch.loss.q_weight"),
        ("arch/trm_singlez.yaml", "puzzle_emb_ndim: ${.hidden_size}", "arch.puzzle_emb_ndim"),
        ("arch/hrm_feudal.yaml", "subgoal_head: {gating: true}", "arch.subgoal_head.gating"),
        ("base/pretrain.yaml", "lr: 1.0e-4", "lr"),
        ("base/run.yaml", "seed: 0", "seed"),
        ("cfg_pretrain_maze_hard.yaml", "seed: 0", "seed"),
        ("cfg_pretrain_maze_hard.yaml", "arch: {loss: {q_weight: 0.5}}", "arch.loss.q_weight"),
        ("cfg_train.yaml", "lr_scheduler: {name: none}", "lr_scheduler.name"),
    ],
)
def test_a_repeated_default_is_noticed(configs: Path, file: str, line: str, key: str) -> None:
    path = configs / file
    content = OmegaConf.merge(OmegaConf.create(read_file(path)), OmegaConf.create(line))
    found: Any = OmegaConf.to_container(content, resolve=False)
    assert key in repeated(found, path.parent)


def test_a_key_that_only_the_dataclass_gives_is_one_of_the_config(tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(ROOT / "config" / "base")
    (tmp_path / "cfg.yaml").write_text("defaults:\n  - base/run\n  - _self_\nrun_dir: out/${seed}\n")
    with initialize_config_dir(str(tmp_path), version_base=None):
        config = compose("cfg", ["seed=3", "~log_interval"])
        assert (config.run_dir, config.keep_last, "log_interval" in config) == ("out/3", 2, False)
        with pytest.raises(ConfigCompositionException):
            compose("cfg", ["sed=3"])


def test_run_yaml_composes_from_a_nested_place(tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(ROOT / "config" / "base")
    (tmp_path / "cfg.yaml").write_text("defaults:\n  - base/run\n  - _self_\nseed: 7\n")
    with initialize_config_dir(str(tmp_path), version_base=None):
        config = compose("cfg", return_hydra_config=True)
    assert config.seed == 7
    assert (config.hydra.run.dir, config.hydra.output_subdir) == (".", None)
    assert config.hydra.runtime.choices["hydra/job_logging"] == "none"


def test_every_shared_key_is_documented() -> None:
    assert [key.name for key in keys_of(RunConfig).values() if not key.doc] == []


def test_the_source_stays_reachable() -> None:
    config = load_synced_config(composed(), schema=Schema)
    source = source_of(config)
    assert (config.run_dir, config.lr) == ("out/r", 1.0)
    assert source.resolved["run_dir"] == "out/r"
    assert OmegaConf.to_container(OmegaConf.create(source.yaml), resolve=False) == {
        "lr": 1,
        "run_name": "r",
        "run_dir": "out/${run_name}",
        "arch": {"width": 2},
    }
    assert (source.overrides, source.config_name, source.choices) == ([], None, {})


def test_every_rank_gets_rank_0s_config(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def broadcast(value: Any) -> Any:
        sent.append(value)
        return sent[0]

    monkeypatch.setattr("engine.distributed.broadcast_object", broadcast)
    first = load_synced_config(composed(run_name="a"), 0, 2, schema=Schema)
    second = load_synced_config(composed(run_name="b"), 1, 2, schema=Schema)
    assert (first.run_dir, second.run_dir) == ("out/a", "out/a")
    assert sent[1] is None
    assert source_of(second).yaml == source_of(first).yaml


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lrr": 1}, ["unknown key 'lrr'", "'lr'"]),
        ({"lr": "???"}, ["lr is required"]),
        ({"run_name": "${nope}"}, ["run_name", "nope"]),
        ({"accumulation": 0}, ["accumulation=0", "at least 1"]),
        ({"keep_every": 0}, ["keep_every=0"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"grad_clip": 0}, ["grad_clip=0", "grad_clip=null"]),
        ({"ema_rate": 1}, ["ema_rate=1"]),
        ({"resume": False, "resume_from": "best"}, ["resume=false", "resume_from=best"]),
        ({"parallel": "dpp"}, ["flat|ddp", "did you mean 'ddp'"]),
        ({"script": "other.py"}, ["other.py", "mine.py"]),
    ],
)
def test_a_bad_config_is_one_line(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_synced_config(composed(**changes), schema=Schema, entry="mine")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_declared_script_may_say_its_suffix_or_not() -> None:
    for entry in ("mine", "mine.py"):
        assert load_synced_config(composed(script="mine.py"), schema=Schema, entry=entry).script == "mine.py"


@pytest.fixture
def base() -> dict[str, Any]:
    return {
        "lr": 1e-4,
        "seed": 0,
        "arch": {"width": 2, "run_name": "kept"},
        **dict.fromkeys(NOT_IDENTITY, "x"),
    }


def identity(resolved: dict[str, Any], excluded=frozenset(NOT_IDENTITY)) -> str:
    return sha256_json(identity_of(resolved, without=excluded))


@pytest.mark.parametrize("key", sorted(NOT_IDENTITY))
def test_what_leaves_a_run_the_same_run(base: dict[str, Any], key: str) -> None:
    assert key in {field.name for field in fields(RunConfig)}
    assert identity(base | {key: "y"}) == identity(base) == identity({k: v for k, v in base.items() if k != key})


def test_what_makes_another_run(base: dict[str, Any]) -> None:
    others = [
        {"lr": 2e-4},
        {"seed": 1},
        {"arch": {"width": 3}},
        {"arch": {"width": 2, "run_name": "y"}},
        {"more": None},
    ]
    assert len({identity(base), *(identity(base | other) for other in others)}) == 6


def test_identity_is_independent_of_order_and_of_writing_a_number(base: dict[str, Any]) -> None:
    assert identity(dict(reversed(base.items()))) == identity(base)
    assert identity(base | {"lr": 1}) == identity(base | {"lr": 1.0}) != identity(base | {"lr": True})
    assert identity(base | {"lr": 9}, frozenset({"lr"})) == identity(base | {"lr": 8}, frozenset({"lr"}))
    assert identity({"a": {"b": 1, "c": 2}}, {"a.b"}) == identity({"a": {"b": 9, "c": 2}}, {"a.b"})
    # the hash is stored in run directories: a change of its form orphans them
    assert identity({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


STORED = '# composed from {"config_name": "cfg", "choices": {"arch": "trm", "debug": null}}\n' + (
    "lr: 1.0\nrun_name: r\nrun_dir: out/${run_name}\narch:\n  width: 2\n  depth: ${.width}\n"
)


def test_values_go_on_top_and_interpolations_follow() -> None:
    merged = merge_for_resume(STORED, ["lr=3", "+run_name='a, b'", "arch.width=5", "++arch.extra=[1,2]", "arch=trm"])
    assert OmegaConf.to_container(merged, resolve=True) == {
        "lr": 3,
        "run_name": "a, b",
        "run_dir": "out/a, b",
        "arch": {"width": 5, "depth": 5, "extra": [1, 2]},
    }
    assert OmegaConf.to_container(merge_for_resume(STORED, []), resolve=False)["run_dir"] == "out/${run_name}"  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("arch=hrm", ["arch=hrm", "was started with arch=trm"]),
        ("debug=tiny", ["debug=tiny", "debug=None"]),
        ("+experiment=big", ["+experiment=big", "without experiment"]),
        ("~lr", ["~lr", "resume=false"]),
        ("~arch", ["~arch"]),
        ("lrr=1", ["no key 'lrr'", "did you mean 'lr'"]),
        ("arch.widht=1", ["arch.widht", "did you mean 'arch.width'"]),
        ("lr=1,2", ["lr=1,2", "sweep"]),
        ("lr=[", ["cannot read"]),
    ],
)
def test_a_resume_refuses_what_changes_the_shape(override: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        merge_for_resume(STORED, [override], groups=["experiment"])
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
