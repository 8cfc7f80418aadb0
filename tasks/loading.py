"""Helpers of every command that loads a stored run: arguments, where its data is, and whether the data has changed."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dataset.arguments import positive
from dataset.catalog import describe
from engine.errors import UsageError
from engine.io import print_rank0, user_path
from engine.registry import Family, family_of
from engine.run.environment import DATA_MARKS, data_change
from engine.run.files import read_json, runs_below

if TYPE_CHECKING:
    from torch import Tensor


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose a checkpoint, its weights, the data and the device."""
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
    """The arguments that `load_puzzle_run` of a family takes as keywords."""
    return {name: getattr(args, name) for name in ("split", "data", "steps", "weights", "device")}


TEXT = {"prompt": ["\n"], "max_new_tokens": 500, "num_samples": 1, "temperature": 0.8, "top_k": [200]}
"""Default arguments of scripts/sample.py for models trained on text."""


def with_defaults(args: argparse.Namespace, defaults: Mapping[str, Any]) -> argparse.Namespace:
    """`args` with `defaults` filled in where a value is None."""
    missing = {name: value for name, value in defaults.items() if getattr(args, name) is None}
    return argparse.Namespace(**{**vars(args), **missing})


def refuse_arguments(
    args: argparse.Namespace, names: Iterable[str], model: str, defaults: Mapping[str, Any] | None = None
) -> None:
    """Raise UsageError if one of the arguments `names`, which do not apply to `model` (a description), is given: has
    another value than in `defaults`, which is None for those that it lacks."""
    for name in names:
        if getattr(args, name) != (defaults or {}).get(name):
            raise UsageError(f"--{name.replace('_', '-')} has no meaning for {model}")


def require_family(run: str | Path, entry: str, family: Family) -> None:
    """Raise UsageError unless the script `entry`, which wrote `run`, is that of `family`."""
    if entry != family.entry:
        raise UsageError(f"{run} was written by {entry}.py: expected a run of {family.entry}.py")


def stored_weights(checkpoint: Any, kind: str = "ema") -> tuple[dict[str, Tensor], Literal["ema", "raw"]]:
    """(weights of an engine.checkpoint.manifest.Checkpoint by name, which they are): the averaged ones if `kind` is ema
    and the run keeps any, else the raw ones."""
    averaged = checkpoint.ema if kind == "ema" else None
    return {**checkpoint.model, **(averaged or {})}, "raw" if averaged is None else "ema"


def pick_checkpoint(run: Path, name: str) -> Path:
    """Checkpoint `name` of a run; a checkpoint path is returned as is. Raises: UsageError listing the checkpoints."""
    from engine.checkpoint.store import CheckpointStore

    if not (run / "checkpoints").is_dir() or runs_below(run / "checkpoints"):
        return run
    store = CheckpointStore(run, "")
    if name == "best" and store.best() is None:
        name = "latest"
    return store.resolve(name, "--checkpoint")


def near_path(path: str, fits: Callable[[Path], bool]) -> str:
    """The end of an error line on a `path` that does not exist: the entry beside it with the most similar name among
    those for which `fits` is true; "" if there is none."""
    place, names = user_path(path), list[str]()
    with contextlib.suppress(OSError):  # no hint from a folder that does not exist or cannot be read
        names = [entry.name for entry in place.parent.iterdir() if fits(entry)]
    near = difflib.get_close_matches(place.name, names, n=1)
    return f": did you mean '{os.path.join(os.path.dirname(path.rstrip('/')), near[0])}'?" if near else ""


def near_run(path: str) -> str:
    """`near_path` for a run or a checkpoint."""
    return near_path(path, lambda entry: (entry / "checkpoints").is_dir() or (entry / "manifest.json").is_file())


def shape_mismatch(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Describe the first tensor whose shape differs between a checkpoint (`stored`) and the model (`own`); "" if all
    shapes match."""
    theirs, ours = ({name: list(tensor.shape) for name, tensor in state.items()} for state in (stored, own))
    for name in (*ours, *theirs):
        if (there := theirs.get(name, "missing")) != (here := ours.get(name, "missing")):
            return f"{name} is {there} in the checkpoint, {here} in this model"
    return ""


def require_average(opened: Any, weights: str | None) -> None:
    """Raise UsageError if averaged weights are asked for and `opened` (OpenedCheckpoint) has none."""
    if weights == "ema" and opened.weights != "ema":
        raise UsageError(f"{opened.run_dir} keeps no averaged weights (ema=false): use --weights raw")


def data_root(checkpoint: Path) -> Path:
    """The folder that a run's relative data paths are resolved against.

    The recorded working directory, if the data is there; for a run that was moved, the first parent folder that has
    the data, or the current folder.
    """
    run_dir = checkpoint if (checkpoint / "checkpoints").is_dir() else checkpoint.resolve().parent.parent
    started = _environment(run_dir).get("working_directory")
    recorded = [Path(started)] if isinstance(started, str) and Path(started).is_dir() else []
    names = _data_names(checkpoint)
    for root in (*recorded, *run_dir.parents, Path.cwd()):
        if names and all(os.path.exists(root / name) for name in names):
            return root
    return next(iter(recorded), Path.cwd())


def _data_names(checkpoint: Path) -> list[str]:
    """Relative data paths of a checkpoint's config; empty if it cannot be read, which loading will report."""
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
    """The facts about a data set that a result stores: path, hashes, whether it is a stand-in."""
    card = next((card for card in cards if card.get("path") == str(folder)), None) or describe(folder)
    return {key: card[key] for key in (*DATA_MARKS, "stand_in") if key in card}


def warn_of_other_data(checkpoint: Any, data: list[dict[str, Any]]) -> None:
    """Warn about each data set that differs from the run's. `checkpoint`: engine.checkpoint.manifest.Checkpoint."""
    environment = _environment(checkpoint.path.parent.parent)
    for entry in data:
        if (change := data_change(checkpoint.extra, environment, entry)) is not None:
            print_rank0(f"warning: {entry['path']} is not the data that the run saw ({change})")
