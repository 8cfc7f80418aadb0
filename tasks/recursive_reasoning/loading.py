"""Load a run of pretrain.py, or of a similar family, with examples for evaluation or visualisation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dataset.catalog import ensure
from dataset.format import PuzzleSplit, load_splits
from engine.errors import UsageError
from engine.io import user_path
from engine.registry import Family
from tasks.loading import data_identity, data_root, require_average, require_family, warn_of_other_data
from tasks.recursive_reasoning.family import FAMILY


@dataclass(kw_only=True)
class PuzzleRun:
    """A loaded checkpoint with the examples to run it on."""

    opened: Any
    """engine.run.load_run.OpenedCheckpoint"""
    split: str
    """test or train"""
    splits: list[PuzzleSplit]
    """That split of each data set."""
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


def load_puzzle_run(
    run: str | Path,
    *,
    split: str = "test",
    data: Sequence[str | Path] | None = None,
    steps: int | None = None,
    weights: Literal["ema", "raw"] | None = None,
    device: str = "auto",
    family: Family = FAMILY,
) -> PuzzleRun:
    """Load a run (its latest checkpoint) or one of its checkpoints, and the examples to run it on.

    Args:
        split: test or train.
        data: data folders; None takes those that the run was evaluated on.
        steps: ACT steps per example; None takes `arch.halt_max_steps`.
        weights: averaged or raw; None takes averaged ones if the run keeps them.
        family: the family that the run must belong to.

    Raises:
        UsageError: no usable checkpoint or data, averaged weights of a run without, a run of another family.
    """
    from engine.run.load_run import find_checkpoint, open_checkpoint

    checkpoint = Path(os.path.abspath(run))
    chosen = [os.path.abspath(user_path(path)) for path in data or ()]
    if twice := next((path for path in chosen if chosen.count(path) > 1), None):
        raise UsageError(f"--data names {twice} twice: its examples would count twice")
    with contextlib.chdir(data_root(checkpoint)):
        require_family(run, find_checkpoint(checkpoint).entry, family)
        opened = open_checkpoint(checkpoint, device=device, weights=weights or "ema")
        task: Any = opened.plan.task
        config = opened.config
        require_average(opened, weights)
        usual = config.data_paths_test if split == "test" and config.data_paths_test else config.data_paths
        folders = [ensure(path, build=bool(chosen)) for path in chosen or usual]
        roots = [folder.absolute() for folder in folders]  # read after the working directory has changed back
        splits = load_splits(roots, split, like=task.sampler.splits)
        identities = [data_identity(folder, opened.plan.cards) for folder in dict.fromkeys(folders)]
        if not chosen:
            warn_of_other_data(opened.checkpoint, identities)
    steps = steps or task.model.halt_max_steps
    task.model.halt_max_steps = steps  # evaluation always takes exactly this many
    return PuzzleRun(opened=opened, split=split, splits=splits, data=identities, steps=steps)
