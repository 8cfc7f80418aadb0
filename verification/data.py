"""Data sets that a config names: puzzles by dataset.json or the catalogue, texts by meta.json or the table of names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.io import UsageError, read_bytes, read_json, read_object, user_path

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
        entry: Any = BUILT.get(name) or PUBLISHED.get(name)
        if entry is None:
            return DataPath(path, key, "unknown")
        state = "built on first use" if name in BUILT else "published"
        if name not in BUILT and entry.offline and stand_ins:
            state = f"published, else {entry.offline} in its place"
        return DataPath(path, key, state, entry.data_mode, entry.groups, entry.mean_examples, origin=CATALOGUE)
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


def training_groups(config: dict[str, Any], data: Iterable[DataPath]) -> int | None:
    """Groups of puzzles that are trained on, less those held back for validation; None where the data do not say."""
    from dataset.held_back import validation_count

    sizes = [entry.groups for entry in data if entry.key == "data_paths"]
    if not sizes or None in sizes:
        return None
    groups = sum(size or 0 for size in sizes)
    if config.get("select_on") == "validation" and config.get("eval_interval") not in (None, config.get("epochs")):
        groups -= validation_count(groups, config.get("validation_groups")) if groups > 1 else 0
    return groups


# --- texts ------------------------------------------------------------------------------------------------------------

FIXED = ("byte", "gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base")
"""Tokenizers with one vocabulary for all texts; the others make theirs from the text."""
MODES = {"single": "dataset", "multidataset": "dataset_list", "multicontext": "multicontext_datasets"}


@dataclass(frozen=True)
class TextPath(DataPath):
    """One text data set. What is not known is empty or None."""

    tokenizer: str = ""
    vocabulary: str = ""
    """Two data sets whose vocabularies are called the same read a number as the same piece of text."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Tokens of each split."""
    text: str = ""
    """What the text is, where the table of names says it: equal for two tokenizations of one text."""


def text_data(config: dict[str, Any], folder: Path, local: bool) -> list[TextPath]:
    """The data sets of a config that trains on text, in the order of their key; none for other configs."""
    key = MODES.get(str(config.get("training_mode")), "")
    names = config.get(key)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list):
        return []
    return [read_text_data(str(name), key, folder, local, config.get("offline") != "error") for name in names]


def read_text_data(name: str, key: str, folder: Path, local: bool, stand_ins: bool) -> TextPath:
    """data/`name`, or `name` where it is a path (relative to `folder`)."""
    from dataset.text.named import NAMED

    path = name if "/" in name or name.startswith("~") else f"data/{name}"
    root = folder / user_path(path)
    if local and root.exists():
        return _there(TextPath(path, key, "there", "tokens"), root)
    entry = NAMED.get(Path(path).name)
    if entry is None:
        return TextPath(path, key, "unknown")
    state = "published"
    if entry.generated or (entry.offline and stand_ins):
        state = "built on first use" if entry.generated else f"published, else {entry.offline} in its place"
    kind = entry.tokenizer
    text = f"{entry.source} {entry.local} {entry.generated} {entry.offline}"
    vocabulary = kind if kind in FIXED else f"{kind} of {text}"
    origin = "dataset/text/named.py"
    return TextPath(path, key, state, "tokens", origin=origin, tokenizer=kind, vocabulary=vocabulary, text=text)


def _there(path: TextPath, root: Path) -> TextPath:
    missing = [f"{split}.bin" for split in ("train", "val") if not (root / f"{split}.bin").is_file()]
    if missing:
        return replace(path, problem=f"{path.path} has no {' and no '.join(missing)}")
    meta = root / "meta.json"
    if not meta.exists() and not (root / "meta.pkl").exists():  # nanoGPT's rule
        return replace(path, tokenizer="gpt2", vocabulary="gpt2", origin=f"{path.path}/train.bin")
    try:
        content: Any = read_json(meta) if meta.exists() else {}
        kind, lengths = str(content.get("tokenizer", "")), dict(content.get("tokens") or {})
        state = read_bytes(root / "tokenizer.json") if (root / "tokenizer.json").exists() else b""
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return replace(path, problem=f"{path.path}/meta.json cannot be used: {error!r}")
    # an old pickle is opened by the run, which refuses anything but a plain value
    vocabulary = kind if kind in FIXED or not kind else f"{kind} {hashlib.sha256(state).hexdigest()[:8]}"
    return replace(path, tokenizer=kind, vocabulary=vocabulary, lengths=lengths, origin=f"{path.path}/{meta.name}")
