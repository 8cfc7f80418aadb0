"""A small slice of the storm; `python -m tests.storm` has all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storm import files, preload
from tests.storm.__main__ import prepare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    preload()
    return prepare(tmp_path_factory.mktemp("storm"))


def test_damaged_files_cost_one_line(base: Path, tmp_path: Path) -> None:
    assert list(files.storm(base, tmp_path, 30, seed=7)) == []
