"""Puzzle data sets that a config names: mode and size from dataset.json, or from the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.io import UsageError, read_object, user_path

ENCODER_FILE = "all__num_demos.npy"
CATALOGUE = "dataset/catalog.py"


@dataclass(frozen=True)
class DataPath:
    """One data set that a config names. `mode` and `groups` are None where nothing gives them."""

    path: str
    key: str
    """The config key that names it."""
    state: str
    """there, built on first use, published (built from public data by a command), unknown."""
    mode: str | None = None
    groups: int | None = None
    mean_examples: float | None = None
    problem: str = ""
    """What is amiss with a data set that is there."""
    origin: str = ""
    """The file that gives mode and size."""


def puzzle_data(config: dict[str, Any], folder: Path, local: bool) -> Iterator[DataPath]:
    """The entries of data_paths and data_paths_test in `folder`; `local`: whether this machine's data are read."""
    for key in ("data_paths", "data_paths_test"):
        for path in config.get(key) or []:
            yield read_puzzles(str(path), key, folder, local, config.get("offline") != "error")


def read_puzzles(path: str, key: str, folder: Path, local: bool, stand_ins: bool = True) -> DataPath:
    """One puzzle data set."""
    from dataset.catalog import BUILT, PUBLISHED

    root, name = folder / user_path(path), Path(path).name
    if not (local and root.exists()):
        if name in BUILT:
            mode = BUILT[name].data_mode
            size = BUILT[name].groups, BUILT[name].mean_examples
            return DataPath(path, key, "built on first use", mode, *size, origin=CATALOGUE)
        if name in PUBLISHED:
            entry = PUBLISHED[name]
            state = f"published, else {entry.offline} in its place" if entry.offline and stand_ins else "published"
            return DataPath(path, key, state, entry.data_mode, entry.groups, entry.mean_examples, origin=CATALOGUE)
        return DataPath(path, key, "unknown")
    file = root / "train" / "dataset.json"
    try:
        content = read_object(file)
        groups, mean = content["total_groups"], float(content["mean_puzzle_examples"])
        if type(groups) is not int:
            raise TypeError(f"total_groups is {groups!r}")
    except (UsageError, ValueError, KeyError, TypeError) as error:
        return DataPath(path, key, "there", problem=f"{path}/train/dataset.json cannot be used: {error!r}")
    encoder = (root / "train" / ENCODER_FILE).exists()
    mode = content.get("data_mode") or ("encoder" if encoder else "embedding")
    problem = "" if (root / "test" / "dataset.json").exists() else f"{path} has no test/dataset.json"
    if encoder and mode == "embedding":
        problem = f"{path}/train holds {ENCODER_FILE} though dataset.json has data_mode={mode}"
    return DataPath(path, key, "there", mode, groups, mean, problem, f"{path}/train/dataset.json")
