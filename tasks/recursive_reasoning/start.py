"""Start a run of pretrain.py from the weights of another one: `load_checkpoint`.

All tensors but the puzzle table must match in shape. A row of the table belongs to a puzzle, so rows are matched by
puzzle name, not by identifier; a new puzzle starts from the mean of all rows, as every puzzle of other data does in the
public code. Shapes: N rows of the stored table, M of ours, blank included; E width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.format import PuzzleSplit, combined_identifiers
from dataset.metadata import read_card, read_json_file
from dataset.writing import CARD
from engine.checkpoint.manifest import Checkpoint
from engine.checkpoint.state_tree import load_weights
from engine.errors import UsageError
from engine.io import print_rank0, user_path
from engine.run.load_run import find_checkpoint
from models.recursive_reasoning.model import RecursiveModel
from tasks.loading import data_root, near_run, shape_mismatch, stored_weights
from tasks.recursive_reasoning.args import PretrainConfig
from tasks.recursive_reasoning.family import FAMILY

KEY = "load_checkpoint"
TABLE = "inner.puzzle_emb.weights"
PUBLIC_CONFIG = "all_config.yaml"


def initial_weights(
    config: PretrainConfig, model: RecursiveModel, train: Sequence[PuzzleSplit]
) -> Callable[[], None] | None:
    """A function that loads the initial weights, to be called if the run does not resume; None for random weights."""
    return partial(load_initial, config, model, train) if config.load_checkpoint else None


def load_initial(config: PretrainConfig, model: RecursiveModel, train: Sequence[PuzzleSplit]) -> None:
    """Load the weights of the run or checkpoint that the config names (averaged ones if it keeps them) into `model`.

    Optimizer states, step and carry are not loaded. `train`: the training splits.

    Raises: UsageError for a missing checkpoint, or weights of another architecture or vocabulary.
    """
    name = f"{KEY}={config.load_checkpoint}"
    checkpoint = _find(name, user_path(str(config.load_checkpoint)))
    (weights, kind), own = stored_weights(checkpoint), model.state_dict()
    report, table = "no puzzle table", weights.get(TABLE)
    if table is not None and TABLE in own and table.shape[1:] == own[TABLE].shape[1:]:
        theirs, ours = _names(_folders(checkpoint), len(table)), _names(_roots(train), len(own[TABLE]))
        weights[TABLE], report = match_rows(table, theirs, ours, len(own[TABLE]))
    changed = _changed_keys(checkpoint.config.get("arch"), config.arch)
    if mismatch := shape_mismatch(weights, own):
        trained = f", which was trained with {', '.join(changed)}" if changed else ""
        raise UsageError(
            f"{name}: {mismatch}: expected the arch.* keys of that run{trained}, and data of the same vocabulary (with "
            "arch.mlp_t=true or learned positions of the same length, too)"
        )
    load_weights(model, weights)
    averaged = ", averaged" if kind == "ema" else ""
    print_rank0(f"weights     {checkpoint.path} (step {checkpoint.step}{averaged}), {len(weights)} tensors; {report}")
    if changed:
        print_rank0(f"note: the weights were trained with {', '.join(changed)}")


def check_branch(config: PretrainConfig, train: Sequence[PuzzleSplit]) -> None:
    """Refuse `resume_from` of a run trained on other puzzles: a branch takes over the puzzle table row by row.

    Raises: UsageError.
    """
    path = user_path(config.resume_from)
    if config.from_file or "/" not in config.resume_from or not path.exists():
        return  # the run's own checkpoint; a missing one is refused when the run is opened
    checkpoint = find_checkpoint(path)
    if checkpoint.entry != FAMILY.entry or (table := checkpoint.model.get(TABLE)) is None:
        return
    theirs, ours = _names(_folders(checkpoint), len(table)), _names(_roots(train), combined_identifiers(train))
    if theirs is not None and ours is not None and theirs != ours:
        raise UsageError(
            f"resume_from={config.resume_from} has embeddings of other puzzles than data_paths: {KEY}="
            f"{config.resume_from} takes its weights and matches them by name, from step 0"
        )


def match_rows(table: Tensor, theirs: list[str] | None, ours: list[str] | None, rows: int) -> tuple[Tensor, str]:
    """Map the stored table [N, E] to a table [M = rows, E] by the puzzle names of both (None if unknown); returns it
    with a sentence about where its rows come from. Row 0, blank, stays row 0."""
    row_of = {name: row for row, name in reversed(list(enumerate(theirs or ())))}
    found = [row_of.get(name, -1) for name in ours or [""] * rows]
    source = torch.tensor([0, *found[1:]])
    new = source < 0
    mapped = table[source.clamp(min=0)]
    mapped[new] = table.mean(0)
    known = rows - int(new.sum())
    unknown = "" if theirs and ours else " (the names of the puzzles, identifiers.json of the data, are not here)"
    others = f", the others are the mean of its {len(table):,}{unknown}" if known < rows else ""
    return mapped, f"puzzle table: {known:,} of {rows:,} rows by name{others}"


def _find(name: str, path: Path) -> Checkpoint:
    if not path.exists():
        raise UsageError(f"{name}: no such run or checkpoint{near_run(name.partition('=')[2])}")
    if path.is_file() or ((path / PUBLIC_CONFIG).exists() and not (path / "checkpoints").exists()):
        raise UsageError(f"{name} is no run of ours: python scripts/convert.py import makes one of a public checkpoint")
    checkpoint = find_checkpoint(path, checksums=True)
    if checkpoint.entry != FAMILY.entry:
        raise UsageError(f"{name}: written by {checkpoint.entry}.py, expected a run of {FAMILY.entry}.py")
    return checkpoint


def _folders(checkpoint: Checkpoint) -> list[Path]:
    """Absolute paths of the data sets that a checkpoint was trained on."""
    with contextlib.chdir(data_root(checkpoint.path)):
        return [Path(folder).absolute() for folder in FAMILY.data_folders(checkpoint.config)]


def _roots(train: Sequence[PuzzleSplit]) -> list[Path]:
    return list(dict.fromkeys(split.root for split in train))


def _names(folders: Sequence[Path], rows: int) -> list[str] | None:
    """Puzzle names in the row order of a table over all folders; None if not all are known. Two generated data sets
    may use one name for different puzzles, so their names carry the content hash."""
    names = [""]
    for folder in folders:
        file, card = folder / "identifiers.json", folder / CARD
        listed = read_json_file(file) if file.exists() else None
        if not isinstance(listed, list):
            return None
        about = read_card(card) if card.exists() else {}
        mark = about.get("content_hash", "") if about.get("source") == "generated" else ""
        names += [f"{name}{mark}" for name in listed[1:]]
    return names if len(names) == rows else None


def _changed_keys(then: Any, now: Mapping[str, Any]) -> list[str]:
    """`arch.key=value` of the other run for each key whose value differs in this one."""
    stored = then if isinstance(then, Mapping) else {}
    return [f"arch.{key}={stored[key]}" for key in now if key != "loss" and stored.get(key, now[key]) != now[key]]
