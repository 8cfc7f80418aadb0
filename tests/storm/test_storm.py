"""A small slice of the storm; `python -m tests.storm` has all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storm import child, files, kills
from tests.storm.__main__ import prepare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    child.preload()
    return prepare(tmp_path_factory.mktemp("storm"))


def test_killed_at_file_operations_and_started_again(base: Path, tmp_path: Path) -> None:
    assert list(kills.storm(base, tmp_path, 6, seed=7)) == []


def test_damaged_files_cost_one_line(base: Path, tmp_path: Path) -> None:
    assert list(files.storm(base, tmp_path, 30, seed=7)) == []
