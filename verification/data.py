"""Data paths without reading the data: mode and size from dataset.json, or from the catalogue's entry."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.held_back import validation_count
from engine.io import UsageError, read_object, user_path
from verification.source import Repo, literal

ENCODER_FILE = "all__num_demos.npy"


@dataclass(frozen=True)
class DataPath:
    """One entry of data_paths. `mode` and `groups` are None where nothing says them."""

    path: str
    key: str
    """The config key that names it."""
    state: str
    """there, built on first use, published (built from public data by a command), unknown."""
    mode: str | None = None
    groups: int | None = None
    mean_examples: float | None = None
    problem: str = ""
    """What is wrong with a data set that is there."""
    origin: str = ""
    """The file that says mode and size."""


def read_data(repo: Repo, path: str, key: str, folder: Path) -> DataPath:
    """Look at `path` (relative to `folder`)."""
    root = folder / user_path(path)
    if "catalog" not in repo.memo:
        repo.memo["catalog"], repo.memo["built mode"] = _catalog(repo), _built_mode(repo)
    catalog = repo.memo["catalog"]
    name = Path(path).name
    if not (repo.local_data and root.exists()):
        entry = catalog["BUILT"].get(name)
        if entry is not None:
            groups = entry.get("num_train")
            mode = repo.memo["built mode"]
            return DataPath(path, key, "built on first use", mode, groups, 1.0, origin="dataset/catalog.py")
        if name in catalog["PUBLISHED"]:
            size = re.search(r"--subsample-size (\d+)", str(catalog["PUBLISHED"][name]))
            groups = int(size[1]) if size else None
            return DataPath(path, key, "published", None, groups, 1.0, origin="dataset/catalog.py")
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
        problem = f"{path}/train holds {ENCODER_FILE} though dataset.json says data_mode={mode}"
    return DataPath(path, key, "there", mode, groups, mean, problem, f"{path}/train/dataset.json")


def _built_mode(repo: Repo) -> str | None:
    """What the builders write: the default of the metadata's data_mode."""
    metadata = repo.find_class("dataset.format", "PuzzleMetadata")
    found = None if isinstance(metadata, str) else metadata.variable("data_mode")
    return found[0] if found and isinstance(found[0], str) else None


def _catalog(repo: Repo) -> dict[str, dict[str, Any]]:
    """The literal parts of BUILT and PUBLISHED: name -> keyword arguments, or the builder's flags."""
    found: dict[str, dict[str, Any]] = {"BUILT": {}, "PUBLISHED": {}}
    module = repo.module("dataset.catalog")
    for table, entries in found.items():
        node = module.names.get(table) if module else None
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if not isinstance(value, ast.Dict):
            continue
        for key, item in zip(value.keys, value.values, strict=True):
            name = literal(key)
            if isinstance(item, ast.Call):
                entries[name] = {k.arg: literal(k.value) for k in item.keywords}
            else:
                entries[name] = literal(item, default={})
    return found


def total_steps(data: list[DataPath], config: dict[str, Any]) -> int | None:
    """Optimizer steps of the whole run: as stated, or as the sampler counts them (exact for puzzles of equal size).

    None: unknown.
    """
    if isinstance(stated := config.get("max_iters"), int):
        return 0 if config.get("eval_only") else stated
    if not data or any(entry.groups is None or not entry.mean_examples for entry in data):
        return None
    groups = sum(entry.groups or 0 for entry in data)
    mean = sum((entry.groups or 0) * (entry.mean_examples or 0) for entry in data) / max(groups, 1)
    epochs, batch = config.get("epochs"), config.get("global_batch_size")
    per_iteration = config.get("eval_interval") or epochs
    if not (isinstance(epochs, int) and isinstance(batch, int) and isinstance(per_iteration, int)) or not mean:
        return None
    if batch < 1 or per_iteration < 1:
        return None
    if config.get("select_on") == "validation" and per_iteration != epochs and groups > 1:
        groups -= validation_count(groups, config.get("validation_groups"))
    taken = -(-batch // mean)  # groups that fill one batch
    return (epochs // per_iteration) * int(groups * per_iteration // taken)
