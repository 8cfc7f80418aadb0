"""Values that no key can take are refused at the border, in one line, whatever the key's type."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from engine.config import RunConfig, load_synced_config, resolved_container
from engine.errors import UsageError
from engine.run.stored import stored_config
from engine.schema import structure
from tests.conftest import run_script

DEVICE = ("+debug=tiny", "device=cpu")


@dataclass(kw_only=True)
class Kinds:
    """One key of each kind."""

    number: float = 1.0
    count: int | None = 1
    text: str = ""
    switch: bool = False
    word: Literal["off", "warn", "on"] = "warn"
    answer: Literal["auto", "true", "false"] = "auto"
    free: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"count": 2**64}, "count: expected an integer between -2**63 and 2**63 - 1, got one of 65 bits"),
        ({"number": -(10**400)}, "number: expected an integer between"),
        ({"free": {"a": [1, {"b": 2**63}]}}, "free.a[1].b: expected an integer between"),
        ({"text": "a\udcff"}, "text: expected text in UTF-8 without a null character, got 'a\\udcff'"),
        ({"free": {"a": "x\0"}}, "free.a: expected text in UTF-8"),
        ({"texts": ["fine", "\ud800"]}, "texts[1]: expected text in UTF-8"),
        (
            {"text": False},
            "text: expected text, got false; YAML reads a bare on, off, yes or no as that: put the word in",
        ),
        ({"count": "x" * 500}, "count: expected integer or null, got"),
    ],
)
def test_what_no_key_takes(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        structure(Kinds, data)
    assert str(caught.value).startswith(message.partition(" or null")[0])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("key", "given", "meant"),
    [
        ("word", False, "off"),
        ("word", True, "on"),
        ("answer", True, "true"),
        ("answer", False, "false"),
        ("switch", "on", True),
        ("switch", "no", False),
        ("count", 2**63 - 1, 2**63 - 1),
    ],
)
def test_a_truth_value_means_the_word_and_a_word_the_truth_value(key: str, given: Any, meant: Any) -> None:
    assert getattr(structure(Kinds, {key: given}), key) == meant


def test_a_recipe_that_says_off_without_quotes(workplace: Path) -> None:
    (workplace / "cfg_mine.yaml").write_text(
        "defaults:\n  - cfg_pretrain_sudoku_4x4\n  - _self_\nverify: off\ncompile: off\nema: on\n"
    )
    done = run_script(
        "pretrain", "--config-dir", ".", "--config-name", "cfg_mine", *DEVICE, "run_dir=run", cwd=workplace
    )
    assert done.code == 0, done.output
    assert (workplace / "run/summary.json").exists()


# --- the environment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["run_name", "wandb_group", "lr", "arch.name", "evaluators"])
def test_a_secret_of_the_environment_gets_nowhere(workplace: Path, key: str) -> None:
    word = f"{key}=${{oc.env:SECRET}}"
    done = run_script("pretrain", *DEVICE, word, cwd=workplace, env={"SECRET": "hunter2"})
    assert done.code == 2
    assert "hunter2" not in done.output
    assert "would be stored with the run" in done.output
    assert not (workplace / "checkpoints").exists()


def test_printing_a_config_prints_no_secret(workplace: Path) -> None:
    words = ("--cfg", "job", "--resolve", "wandb_group=${oc.env:SECRET}")
    done = run_script("pretrain", *words, cwd=workplace, env={"SECRET": "hunter2"})
    assert done.code == 2
    assert "hunter2" not in done.output


def test_places_and_people_may_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    monkeypatch.delenv("SCRATCH", raising=False)
    config = OmegaConf.create({"a": "${oc.env:USER}/x", "b": "${oc.env:SCRATCH,here}", "c": "${oc.env:SCRATCH,null}"})
    assert resolved_container(config) == {"a": "ada/x", "b": "here", "c": None}
    with pytest.raises(UsageError, match="this variable is not set"):
        resolved_container(OmegaConf.create({"a": "${oc.env:SCRATCH}"}))


def test_overrides_are_kept_as_they_were_written(workplace: Path) -> None:
    words = ("wandb_group=${oc.env:USER,nobody}", "run_dir=run")
    done = run_script("pretrain", *DEVICE, *words, cwd=workplace, env={"USER": "ada"})
    assert done.code == 0, done.output
    assert "wandb_group=${oc.env:USER,nobody}" in (workplace / "run/overrides.txt").read_text().splitlines()


def test_a_stored_config_reads_no_secret_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    (tmp_path / "config.yaml").write_text("seed: 1\nwandb_group: ${oc.env:SECRET}\n")
    config = load_synced_config(OmegaConf.create({}), schema=RunConfig)
    with pytest.raises(UsageError, match="would be stored with the run"):
        stored_config(tmp_path, config)


# --- commands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("attention=${.seed}",), "attention: 0 is not one of auto|sdpa|flash|math"),
        (("arch.loss=5",), "arch.loss: expected a block of keys, got 5"),
        (("arch=5",), "there is no arch=5: choose one of"),
        (("hydra.mode=MULTIRUN",), "write -m"),
        (("--cfg", "nope"), "--cfg nope: choose one of all, hydra, job"),
        (("--info=nope",), "--info=nope: choose one of"),
        (("--cfg", "job", "-p", "nope"), "package 'nope' not found"),
        (("--experimental-rerun", "x"), "unknown flag --experimental-rerun"),  # it unpickles a file
        (("evaluators=[{name: losses@ACTLossHead}]",), "expected one of evaluators/"),
        (("evaluators=[{name: steps@PerStepAccuracyConfig}]",), "choose one of PerStepAccuracy"),
        (("arch.loss.name=stablemax@Tensor",), "no class Tensor"),
        (
            ("run_name=a,b",),
            "run_name=a,b is several values: -m for a sweep, run_name=[a,b] for a list, --run_name a,b",
        ),
        (("run_name=a\udcff",), "is not valid UTF-8"),
        (("--run_name", "\udcff"), "is not valid UTF-8"),
        (("epochs=18446744073709551616",), "epochs: expected an integer between"),
        (("evaluators=[{name: 18446744073709551616}]",), "evaluators[0].name: expected an integer between"),
    ],
)
def test_one_line_and_exit_code_2(workplace: Path, words: tuple[str, ...], message: str) -> None:
    done = run_script("pretrain", *(() if words[0].startswith("--c") else DEVICE), *words, cwd=workplace)
    assert done.code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output
    assert len(done.output.splitlines()) == 1
    assert not (workplace / "checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("optimizer.options=5",), "optimizer.options: expected a block of keys, got 5"),
        (("optimizer={options: 5}",), "optimizer.options: expected a block"),
        (("arch.loss=[]",), "arch.loss"),
        (("optimizer.options.eps=18446744073709551616",), "optimizer.options.eps: expected an integer between"),
    ],
)
def test_the_same_of_train(workplace: Path, words: tuple[str, ...], message: str) -> None:
    done = run_script("train", "+debug=tiny_text", "device=cpu", *words, cwd=workplace)
    assert done.code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output


def test_integers_of_stored_configs_are_checked_too() -> None:
    with pytest.raises(UsageError, match="seed: expected an integer between"):
        structure(RunConfig, json.loads('{"seed": 18446744073709551616}'))
