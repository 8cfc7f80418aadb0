"""The preflight of a running config: fast, quiet where all is right, one line where it is not; signatures compare."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from engine.cli.compose import compose_config
from engine.config import ConfigSource
from engine.errors import UsageError
from engine.schema import structure
from tasks.recursive_reasoning.args import PretrainConfig
from tests.conftest import ROOT
from verification.preflight import compare_signatures, line_of, preflight, review

FOLDERS = [ROOT / "config"]


def running(recipe: str, *overrides: str):
    """A config as load_synced_config makes it."""
    composed = compose_config(FOLDERS, recipe, list(overrides))
    resolved = OmegaConf.to_container(composed.config, resolve=True)
    config = structure(PretrainConfig, resolved)
    vars(config)["_source"] = ConfigSource("", resolved, list(overrides), recipe, composed.choices)
    return config


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (ROOT / "config").glob("cfg_pretrain*.yaml")))
def test_every_recipe_starts(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    signature = preflight(running(recipe), "pretrain", ROOT)
    assert signature["config"] == recipe
    assert signature["train_forward"] == "_forward_train_original"
    assert signature["encoder_policy"] == "none"
    assert "warning" not in capsys.readouterr().out


def test_a_smoke_run_is_warned_not_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    preflight(running("cfg_pretrain_sudoku_extreme_mlp", "+debug=tiny"), "pretrain", ROOT)
    assert "CFG250" in capsys.readouterr().out


def test_a_fault_stops_with_one_line_and_its_fix() -> None:
    with pytest.raises(UsageError, match=r"CFG250 .*lr_warmup_steps=500.*lr_warmup_steps=12") as caught:
        preflight(running("cfg_pretrain", "lr_warmup_steps=500", "verify=strict"), "pretrain", ROOT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("level", "printed"), [("warn", True), ("off", False)])
def test_the_level_decides(level: str, printed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    config = running("cfg_pretrain", "lr_warmup_steps=500")
    vars(config)["verify"] = level
    signature = preflight(config, "pretrain", ROOT)
    assert ("CFG250" in capsys.readouterr().out) == printed
    assert bool(signature) == printed


def test_places_are_found_without_composing() -> None:
    _, report = review(running("cfg_pretrain_sudoku_4x4"), "pretrain", ROOT)
    halting = next(found for found in report.findings if found.code == "CFG230")
    assert halting.place == "config/arch/trm.yaml:15"
    assert not report.failed()


def test_signatures_compare() -> None:
    old = preflight(running("cfg_pretrain_sudoku_4x4"), "pretrain", ROOT)
    other = preflight(running("cfg_pretrain_sudoku_4x4", "arch=hrm", "arch.H_layers=1"), "pretrain", ROOT)
    fails, warns = compare_signatures(old, {**other, "world_size": 7, "commit": "other"})
    assert any(text.startswith("model: ") for text in fails)
    assert {text.partition(":")[0] for text in warns} >= {"world_size", "commit"}
    assert compare_signatures(old, dict(old)) == ([], [])
    assert compare_signatures({}, old) == ([], [])


def test_a_line_says_where_and_what_to_do() -> None:
    finding = SimpleNamespace(code="X1", place="a.py:3", message="wrong", fix="mend")
    assert line_of(finding) == "X1 a.py:3: wrong: mend"  # type: ignore[arg-type]
