"""A run of pretrain.py loaded for evaluation or drawing, with the examples that it is fed."""

from __future__ import annotations

import argparse
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from dataset.catalog import ensure
from dataset.format import PuzzleSplit, load_splits
from engine.errors import UsageError
from engine.io import user_path
from tasks.loading import data_identity, home_of, require_average, warn_of_other_data
from tasks.recursive_reasoning.family import FAMILY


@dataclass(kw_only=True)
class PuzzleRun:
    """A checkpoint ready to be fed, and what it is fed."""

    opened: Any
    """engine.run.load_run.OpenedCheckpoint"""
    splits: list[PuzzleSplit]
    data: list[dict[str, Any]]
    """Path and hashes of each data set."""
    steps: int
    """ACT steps per example."""

    @property
    def task(self) -> Any:
        return self.opened.plan.task

    @property
    def name(self) -> str:
        """The last two parts of the run directory: project/run."""
        return "/".join(self.opened.run_dir.parts[-2:])


def load_puzzle_run(args: argparse.Namespace) -> PuzzleRun:
    """Load the checkpoint and data that the arguments of `add_run_arguments` name.

    Raises:
        UsageError: no usable checkpoint or data, averaged weights asked of a run without, a run of another family.
    """
    from engine.run.load_run import find_checkpoint, open_checkpoint

    checkpoint = Path(os.path.abspath(args.checkpoint))
    given = [os.path.abspath(user_path(path)) for path in args.data or ()]
    with contextlib.chdir(home_of(checkpoint)):
        weights = cast(Literal["ema", "raw"], args.weights or "ema")
        writer = find_checkpoint(checkpoint).entry
        if writer != FAMILY.entry:
            raise UsageError(f"{args.checkpoint} was written by {writer}.py: expected a run of {FAMILY.entry}.py")
        opened = open_checkpoint(checkpoint, device=args.device, weights=weights)
        task: Any = opened.plan.task
        config = opened.config
        require_average(opened, args)
        usual = config.data_paths_test if args.split == "test" and config.data_paths_test else config.data_paths
        folders = [ensure(path, build=bool(given)) for path in given or usual]
        roots = [folder.absolute() for folder in folders]  # they are read after the folder has changed back
        splits = load_splits(roots, args.split, like=task.sampler.splits)
        data = [data_identity(folder, opened.plan.cards) for folder in dict.fromkeys(folders)]
        if not given:
            warn_of_other_data(opened.checkpoint, data)
    steps = args.steps or task.model.halt_max_steps
    task.model.halt_max_steps = steps  # evaluation always takes exactly this many
    return PuzzleRun(opened=opened, splits=splits, data=data, steps=steps)
