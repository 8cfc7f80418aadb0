"""What makes two commands the same run, and what a run may be called."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import is_folder_name
from engine.registry import family_of
from engine.run.files import read_json
from engine.run.identity import completed
from tests.conftest import run_script

FEUDAL = (
    "--config-name=cfg_pretrain_sudoku_4x4",
    "+debug=tiny",
    "device=cpu",
    "arch=hrm_feudal",
    "max_steps=1",
    "arch.H_layers=1",
    "arch.H_cycles=1",
    "arch.mlp_t=false",
    "arch.pos_encodings=rope",
)


def test_a_deleted_key_is_its_default() -> None:
    schema, name = family_of("train", "").schema, "language_models.gpt@GPT"
    deleted, usual, other = ({"arch": {"name": name, **more}} for more in ({}, {"init_std": 0.02}, {"init_std": 0.03}))
    assert completed(deleted, schema) == completed(usual, schema) != completed(other, schema)


def test_no_manager_however_it_is_said(workplace: Path) -> None:
    first = run_script("pretrain", *FEUDAL, "~arch.subgoal_head", cwd=workplace)
    assert first.code == 0, first.output
    second = run_script("pretrain", *FEUDAL, "arch.subgoal_head=null", "skip_finished=true", cwd=workplace)
    assert "done already (step 1)" in second.output, second.output


@pytest.mark.parametrize(
    "name", ["a run's name", 'say "x"', "größe=5 €", "実験 1", "a,b", "[x]", "50%", "a:b", "$x", "-x"]
)
def test_any_text_that_a_folder_can_bear(workplace: Path, name: str) -> None:
    assert is_folder_name(name)
    if name not in ("a run's name", "実験 1", "[x]"):
        return  # three runs are enough: the rest is the same code
    quoted = name.replace("'", "\\'")
    argv = ("--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu", "project_name=p")
    result = run_script("pretrain", *argv, f"run_name='{quoted}'", cwd=workplace)
    assert result.code == 0, result.output
    assert read_json(workplace / "checkpoints/p" / name / "status.json")["state"] == "done"


@pytest.mark.parametrize("name", ["a/b", "a\0b", "..", ".", "x" * 201, "é" * 101, "\udc80", " "])
def test_what_no_folder_can_be_called(workplace: Path, name: str) -> None:
    from engine.config import RunConfig

    with pytest.raises(ValueError, match="run_name="):
        RunConfig(run_name=name)
