"""A run that was moved finds its data where they are now; where it was started counts first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.checkpoint.store import CheckpointStore
from tasks.loading import data_root


def run_at(folder: Path, started: Path, config: dict[str, object]) -> Path:
    """A run directory with one checkpoint of `config`, started in `started`."""
    store = CheckpointStore(folder, "pretrain" if "data_paths" in config else "train")
    store.save(1, model={"w": torch.zeros(1)}, state={}, config=config)
    (folder / "environment.json").write_text(json.dumps({"working_directory": str(started)}))
    return folder


@pytest.mark.parametrize("config", [{"dataset": "plain"}, {"data_paths": ["data/plain"]}, {"dataset_list": ["plain"]}])
def test_data_beside_a_moved_run_are_found(tmp_path: Path, config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, here = tmp_path / "old", tmp_path / "new", tmp_path / "here"
    for place in (old, here):
        place.mkdir()
    monkeypatch.chdir(here)
    run = run_at(new / "checkpoints/p/r", old, config)
    assert data_root(run) == old  # nobody has the data: the error names the place it was started in
    (here / "data/plain").mkdir(parents=True)
    assert data_root(run) == here
    (new / "data/plain").mkdir(parents=True)
    assert data_root(run) == new
    assert data_root(run / "checkpoints/step_1") == new
    (old / "data/plain").mkdir(parents=True)
    assert data_root(run) == old


def test_a_damaged_or_odd_config_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x" * 5000, "\x00", "/dev/zero"):
        assert data_root(run_at(tmp_path / "r", tmp_path / "gone", {"dataset": name})) == tmp_path
