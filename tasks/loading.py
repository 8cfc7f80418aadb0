"""What the commands on a stored run share, whatever its family: arguments, where its data lie, and whether they are
still what the run saw."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.arguments import positive
from dataset.catalog import describe
from engine.errors import UsageError
from engine.io import print_rank0
from engine.registry import family_of
from engine.run.environment import DATA_MARKS, data_change
from engine.run.files import read_json, runs_below

if TYPE_CHECKING:
    from torch import Tensor


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, what to feed it, and how."""
    parser.add_argument("checkpoint", type=Path, help="a run directory (its latest checkpoint) or a step_N directory")
    parser.add_argument("--split", choices=("test", "train"), default="test", help="which examples; default: test")
    parser.add_argument("--data", nargs="+", metavar="PATH", help="data sets; default: those the run was evaluated on")
    parser.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="ACT steps per example, more than it was trained with if you like; default: arch.halt_max_steps",
    )
    parser.add_argument(
        "--weights", choices=("ema", "raw"), help="averaged or raw; default: averaged, if the run keeps them"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: auto")


def run_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of these arguments that are keywords of a family's `load_puzzle_run`."""
    return {name: getattr(args, name) for name in ("split", "data", "steps", "weights", "device")}


TEXT = {"prompt": ["\n"], "max_new_tokens": 500, "num_samples": 1, "temperature": 0.8, "top_k": [200]}
"""Arguments of scripts/sample.py where none are given, for models that were trained on text."""


def with_defaults(args: argparse.Namespace, defaults: Mapping[str, Any]) -> argparse.Namespace:
    """`args` with the defaults of those that were not given (None)."""
    left = {name: value for name, value in defaults.items() if getattr(args, name) is None}
    return argparse.Namespace(**{**vars(args), **left})


def pick_checkpoint(run: Path, name: str) -> Path:
    """The checkpoint `name` of a run; the path of one stays as it is. Raises: UsageError that lists the checkpoints."""
    from engine.checkpoint.store import CheckpointStore

    if not (run / "checkpoints").is_dir() or runs_below(run / "checkpoints"):
        return run
    store = CheckpointStore(run, "")
    if name == "best" and store.best() is None:
        name = "latest"
    return store.resolve(name, "--checkpoint")


def misfit(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The first tensor of a checkpoint (`given`) and of the model (`own`) whose shapes differ, in words; "" where all
    agree."""
    theirs, ours = ({name: list(tensor.shape) for name, tensor in state.items()} for state in (given, own))
    for name in (*ours, *theirs):
        if (there := theirs.get(name, "missing")) != (here := ours.get(name, "missing")):
            return f"{name} is {there} in the checkpoint, {here} in this model"
    return ""


def require_average(opened: Any, weights: str | None) -> None:
    """Raises UsageError where `weights` asks for averaged ones and `opened` (OpenedCheckpoint) has none."""
    if weights == "ema" and opened.weights != "ema":
        raise UsageError(f"{opened.run_dir} keeps no averaged weights (ema=false): use --weights raw")


def home_of(checkpoint: Path) -> Path:
    """The folder that the relative data paths of a run start from.

    Where the run was started, if its data are there; else, for a run that was moved, a folder above it or the current
    one, whichever has them.
    """
    run_dir = checkpoint if (checkpoint / "checkpoints").is_dir() else checkpoint.resolve().parent.parent
    started = _environment(run_dir).get("working_directory")
    recorded = [Path(started)] if isinstance(started, str) and Path(started).is_dir() else []
    names = _data_names(checkpoint)
    for home in (*recorded, *run_dir.parents, Path.cwd()):
        if names and all(os.path.exists(home / name) for name in names):
            return home
    return next(iter(recorded), Path.cwd())


def _data_names(checkpoint: Path) -> list[str]:
    """Relative data paths in a checkpoint's config; none where it cannot be read, which loading it will report."""
    from engine.run.load_run import find_checkpoint

    try:
        stored = find_checkpoint(checkpoint)
        folders = family_of(stored.entry, "entry").data_folders(stored.config)
    except UsageError:
        return []
    return [folder for folder in folders if not os.path.isabs(folder)]


def _environment(run_dir: Path) -> dict[str, Any]:
    return read_json(run_dir / "environment.json")  # {} for a checkpoint copied without its run


def data_identity(folder: Path, cards: list[dict[str, Any]]) -> dict[str, Any]:
    """What a result records of a data set: path, hashes, whether it stands in for another."""
    card = next((card for card in cards if card.get("path") == str(folder)), None) or describe(folder)
    return {key: card[key] for key in (*DATA_MARKS, "stand_in") if key in card}


def warn_of_other_data(checkpoint: Any, data: list[dict[str, Any]]) -> None:
    """A warning for each data set that the run did not see. `checkpoint`: engine.checkpoint.manifest.Checkpoint."""
    environment = _environment(checkpoint.path.parent.parent)
    for entry in data:
        if (change := data_change(checkpoint.extra, environment, entry)) is not None:
            print_rank0(f"warning: {entry['path']} is not the data that the run saw ({change})")
