"""What evaluate.py and visualize.py share: their common arguments, opening a checkpoint, its examples, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from dataset.arguments import positive
from dataset.catalog import describe, ensure
from dataset.format import PuzzleSplit, load_splits
from engine.errors import Interrupted, RunFailure, UsageError, disk_fault
from engine.io import atomic_write_json, print_rank0, user_path
from engine.run.environment import DATA_MARKS, data_change
from engine.run.files import read_json


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, what to feed it, and how."""
    parser.add_argument("checkpoint", type=Path, help="a run directory (its latest checkpoint) or a step_N directory")
    parser.add_argument("--split", choices=("test", "train"), default="test", help="which examples; default: test")
    parser.add_argument("--data", nargs="+", metavar="PATH", help="data sets; default: those the run was evaluated on")
    parser.add_argument(
        "--steps", type=positive, metavar="N",
        help="ACT steps per example, more than it was trained with if you like; default: arch.halt_max_steps",
    )  # fmt: skip
    parser.add_argument(
        "--weights", choices=("ema", "raw"), help="averaged or raw; default: the averaged ones where the run keeps them"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: auto")


@dataclass(kw_only=True)
class Subject:
    """A checkpoint ready to be fed, and what it is fed with."""

    opened: Any
    """engine.run.load_run.OpenedCheckpoint"""
    splits: list[PuzzleSplit]
    data: list[dict[str, Any]]
    """Path and hashes of each data set."""
    steps: int

    @property
    def task(self) -> Any:
        return self.opened.plan.task

    @property
    def name(self) -> str:
        """The last two parts of the run directory: project/run."""
        return "/".join(self.opened.run_dir.parts[-2:])


def open_subject(args: argparse.Namespace) -> Subject:
    """Open the checkpoint and data that the common arguments name.

    Raises:
        UsageError: no usable checkpoint or data, averaged weights asked of a run without, a run of another kind.
    """
    from engine.run.load_run import open_checkpoint
    from tasks.recursive_reasoning.task import RecursiveReasoningTask

    checkpoint = Path(os.path.abspath(args.checkpoint))
    given = [os.path.abspath(user_path(path)) for path in args.data or ()]
    with contextlib.chdir(home_of(checkpoint)):
        weights = cast(Literal["ema", "raw"], args.weights or "ema")
        opened = open_checkpoint(checkpoint, device=args.device, weights=weights)
        task, config = opened.plan.task, opened.config
        if not isinstance(task, RecursiveReasoningTask):
            writer = opened.checkpoint.entry
            raise UsageError(f"{args.checkpoint} was written by {writer}.py: expected a run of pretrain.py")
        require_average(opened, args)
        usual = config.data_paths_test if args.split == "test" and config.data_paths_test else config.data_paths
        folders = [ensure(path, build=bool(given)) for path in given or usual]
        splits = load_splits(folders, args.split, like=task.sampler.splits)
        data = [_identity(folder, opened.plan.cards) for folder in dict.fromkeys(folders)]
        if not given:
            warn_of_other_data(opened.checkpoint, data)
    steps = args.steps or task.model.halt_max_steps
    task.model.halt_max_steps = steps  # evaluation always takes exactly this many
    return Subject(opened=opened, splits=splits, data=data, steps=steps)


def require_average(opened: Any, args: argparse.Namespace) -> None:
    """Raises UsageError where averaged weights were asked of a run without."""
    if args.weights == "ema" and opened.weights != "ema":
        raise UsageError(f"{args.checkpoint} keeps no averaged weights (ema=false): use --weights raw")


def home_of(checkpoint: Path) -> Path:
    """The folder from which the relative data paths of the run count: where it was started, if its data are there;
    else, for a run that was moved, a folder above it or the current one, whichever has them.
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
    """Relative data paths in the config of a checkpoint; none where it cannot be read, which its opening will say."""
    from dataset.text.opening import folder_of
    from engine.run.load_run import find_checkpoint

    try:
        config = find_checkpoint(checkpoint).config
    except UsageError:
        return []
    listed = [config.get(key) or [] for key in ("data_paths", "dataset_list", "multicontext_datasets")]
    texts = [name for entry in listed if isinstance(entry, list) for name in entry if isinstance(name, str)]
    if not texts and isinstance(config.get("dataset"), str):
        texts = [config["dataset"]]
    folders = [user_path(name) if "data_paths" in config else folder_of(name) for name in texts]
    return [str(folder) for folder in folders if not folder.is_absolute()]


def _environment(run_dir: Path) -> dict[str, Any]:
    return read_json(run_dir / "environment.json")  # {} for a checkpoint copied without its run


def _identity(folder: Path, cards: list[dict[str, Any]]) -> dict[str, Any]:
    """What a result says of a data set: path, hashes, whether it stands in for another."""
    card = next((card for card in cards if card.get("path") == str(folder)), None) or describe(folder)
    return {key: card[key] for key in (*DATA_MARKS, "stand_in") if key in card}


def warn_of_other_data(checkpoint: Any, data: list[dict[str, Any]]) -> None:
    """Say which data sets are not those that the run saw. `checkpoint` is an engine.checkpoint.store.Checkpoint."""
    environment = _environment(checkpoint.path.parent.parent)
    for entry in data:
        if (change := data_change(checkpoint.extra, environment, entry)) is not None:
            print_rank0(f"warning: {entry['path']} is not the data that the run saw ({change})")


def write_result(target: Path, content: dict[str, Any]) -> None:
    """Write JSON and say where. Raises: UsageError when it cannot be written."""
    try:
        atomic_write_json(target, content)
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror}): name another file with --json") from None
    print_rank0(f"written     {target}")


def run_command(command: Callable[[], None]) -> int:
    """Run `command` and turn the ways it may end into exit codes; one line for what the user can mend."""
    from engine.distributed import shutdown

    try:
        command()
    except (UsageError, RunFailure, Interrupted, OSError, RuntimeError) as error:
        told = error if isinstance(error, UsageError | RunFailure | Interrupted) else disk_fault(error)
        if told is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {told}", file=sys.stderr)
        return told.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    finally:
        shutdown()
    return 0
