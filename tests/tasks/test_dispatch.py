"""A command on a stored run takes its function from the family that wrote the run, or refuses the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint.store import CheckpointStore
from engine.errors import UsageError
from engine.run.load_run import family_function
from tasks.language_model.sampling import sample_run


def run_of(folder: Path, entry: str) -> Path:
    CheckpointStore(folder, entry).save(1, model={"w": torch.zeros(1)}, state={}, config={})
    return folder


def test_the_family_has_the_function(tmp_path: Path) -> None:
    assert family_function(run_of(tmp_path / "r", "train"), "sampling", "sample_run") is sample_run


@pytest.mark.parametrize(
    ("entry", "part", "name", "other"),
    [("pretrain", "sampling", "sample_run", "train"), ("train", "loading", "load_puzzle_run", "pretrain")],
)
def test_a_run_of_another_family_is_refused(tmp_path: Path, entry: str, part: str, name: str, other: str) -> None:
    with pytest.raises(UsageError, match=rf"r was written by {entry}\.py: expected a run of {other}\.py"):
        family_function(run_of(tmp_path / "r", entry), part, name)


def test_an_entry_that_is_not_in_the_closed_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected an entry script"):
        family_function(run_of(tmp_path / "r", "os"), "sampling", "sample_run")
