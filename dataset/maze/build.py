"""Build a maze data set, generated or from the public CSV, in the layout of dataset/format.py.

N mazes, S side of the grid.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.maze.generate import MazeRecipe, canonical, generate, symmetric_copies
from dataset.maze.paths import VOCAB_SIZE, judge, path_lengths
from dataset.maze.public_csv import read_csv, write_csv
from dataset.published import MAZE_HARD
from dataset.writing import SplitArrays, building, refuse_existing, write_dataset
from engine.distributed import keyed_numpy
from engine.io import UsageError

BUILDER_VERSION = 2
"""Recorded in the card; raise it when the same plan gives other data."""
SMALLEST, LARGEST = 5, 200
"""Sides of generated mazes: of side 200 a maze has 40,000 tokens and takes a quarter of a second to generate."""
COPIES = 8
PUBLISHED_PATH, PUBLISHED_SIDE = 110, 30
"""Maze-Hard: paths of at least 110 steps on 30x30 (arXiv 2506.21734)."""


def usual_min_path(side: int) -> int:
    """The default least path length: proportional to the cells up to 30x30, beyond it 2.5 more steps per row.

    With the default loops, 3 of 10 grids of 30x30 and 4 to 6 of 10 from 36x36 to 200x200 have so long a shortest path
    from a random start: in large mazes loops make the longest shortest path grow with the side, not with the cells.
    """
    if side <= PUBLISHED_SIDE:
        return round(PUBLISHED_PATH * side**2 / PUBLISHED_SIDE**2)
    return PUBLISHED_PATH + 5 * (side - PUBLISHED_SIDE) // 2


@dataclass(kw_only=True)
class MazeBuild:
    """What to build; the flags of `python -m dataset.build_maze_dataset`."""

    output_dir: Path
    size: int | None = None
    """Side of generated mazes; None means 30."""
    num_train: int | None = None
    """Mazes to generate; None means 1,000."""
    num_test: int | None = None
    min_path: int | None = None
    """Least length of generated shortest paths; None means `usual_min_path`."""
    loops: float | None = None
    """Share of the walls between two corridors that are opened; None means 0.05."""
    aug: bool = False
    """All eight turned and mirrored forms of each training maze."""
    subsample_size: int | None = None
    """Number of random training mazes to keep of a CSV."""
    input: Path | None = None
    """Folder with train.csv and test.csv."""
    csv: bool = False
    """Also write train.csv and test.csv into the data set."""
    seed: int = 0
    overwrite: bool = False

    def check(self) -> None:
        """Raise UsageError, naming the flag, for values that cannot be built."""
        for flag, value, least in (
            ("--size", self.size, SMALLEST),
            ("--num-train", self.num_train, 1),
            ("--num-test", self.num_test, 1),
            ("--min-path", self.min_path, 1),
            ("--subsample-size", self.subsample_size, 1),
            ("--seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"{flag} must be at least {least}, got {value}")
        if self.size is not None and self.size > LARGEST:
            raise UsageError(f"--size must be at most {LARGEST} ({LARGEST**2:,} tokens a maze), got {self.size}")
        if self.loops is not None and not 0 <= self.loops <= 1:
            raise UsageError(f"--loops must be in 0 to 1, got {self.loops:g}")
        if self.input is None:
            if self.subsample_size is not None:
                raise UsageError("--subsample-size is for the mazes of a CSV: without --input use --num-train")
            if MAZE_HARD.claims_to_be(self.output_dir):
                raise UsageError(
                    f"--output-dir {self.output_dir}: generated mazes are not Maze-Hard and do not get its name: give "
                    "the public CSV with --input (--download fetches it), or choose another --output-dir"
                )
            return
        for name in ("size", "num_train", "num_test", "min_path", "loops"):
            if getattr(self, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is for generated mazes: leave it out with --input")


def _generated(plan: MazeBuild) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    side = plan.size or PUBLISHED_SIDE
    min_path = plan.min_path or usual_min_path(side)
    loops = 0.05 if plan.loops is None else plan.loops
    common = {"seed": plan.seed, "side": side, "min_path": min_path, "loops": loops}
    *test, keys = generate(MazeRecipe(split="test", **common), plan.num_test or 1000)  # type: ignore[arg-type]
    *train, _ = generate(MazeRecipe(split="train", **common), plan.num_train or 1000, keys)  # type: ignore[arg-type]
    card = {
        "source": "generated",
        "min_path": min_path,
        "loops": loops,
        "split": "by maze: no test maze is a training maze, turned or mirrored ones included",
    }
    return {"train": (train[0], train[1]), "test": (test[0], test[1])}, card


def _from_csv(plan: MazeBuild, folder: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    if not folder.is_dir():
        raise UsageError(f"--input {folder}: expected a folder with train.csv and test.csv")
    train, test = read_csv(folder / "train.csv"), read_csv(folder / "test.csv")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise UsageError(f"{folder}: train.csv has mazes of side {train[0].shape[1]}, test.csv of {test[0].shape[1]}")
    if (count := plan.subsample_size) is not None:
        if count > len(train[0]):
            raise UsageError(f"--subsample-size {count} is more than the {len(train[0])} mazes of {folder}/train.csv")
        chosen = keyed_numpy(plan.seed, "maze/subsample").choice(len(train[0]), count, replace=False)
        train = train[0][chosen], train[1][chosen]
    return {"train": train, "test": test}, {"source": "csv", "input": str(folder), "split": "that of the files"}


def _summary(mazes: np.ndarray, answers: np.ndarray) -> dict[str, Any]:
    """The path lengths of a split, and how many of its answers are shortest paths."""
    lengths = path_lengths(mazes)
    return {
        "shortest_path": {"least": int(lengths.min()), "median": int(np.median(lengths)), "most": int(lengths.max())},
        "answers_that_are_shortest": int(judge(mazes, answers).shortest.sum()),
    }


def _arrays(mazes: np.ndarray, answers: np.ndarray, aug: bool) -> SplitArrays:
    """One group per maze, whose puzzles are its forms."""
    copies = COPIES if aug else 1

    def rows(grids: np.ndarray) -> np.ndarray:
        forms: Sequence[np.ndarray] = [form for grid in grids for form in symmetric_copies(grid)[:copies]]
        return np.stack(forms).reshape(len(forms), -1)

    return SplitArrays.of_boards(rows(mazes), rows(answers), copies)


def build(plan: MazeBuild) -> dict[str, Any]:
    """Build the data set of `plan` and return its card plus `seconds`.

    Raises: UsageError for a plan, an input file or an output folder that cannot be used.
    """
    plan.check()
    began = time.perf_counter()
    with building(plan.output_dir) as root:
        refuse_existing(root, overwrite=plan.overwrite)
        splits, card = _generated(plan) if plan.input is None else _from_csv(plan, plan.input)
        side = splits["train"][0].shape[1]
        trained = {canonical(maze) for maze in splits["train"][0]}
        in_training = sum(canonical(maze) in trained for maze in splits["test"][0])

        def finish(folder: Path) -> dict[str, Any]:
            for name, (mazes, answers) in splits.items() if plan.csv else ():
                write_csv(folder / f"{name}.csv", mazes, answers, root.name)
            return {"test_mazes_in_training": in_training}

        card = write_dataset(
            root,
            {name: _arrays(*grids, plan.aug and name == "train") for name, grids in splits.items()},
            vocab_size=VOCAB_SIZE,
            seq_len=side * side,
            card={
                "name": root.name,
                "builder": "dataset.build_maze_dataset",
                "builder_version": BUILDER_VERSION,
                "board": f"{side}x{side}",
                "tokens": {"pad": 0, "wall": 1, "free": 2, "start": 3, "goal": 4, "path": 5},
                "seed": plan.seed,
                "aug": plan.aug,
                "csv": plan.csv,
                "repeated_mazes": {
                    name: len(mazes) - len({m.tobytes() for m in mazes}) for name, (mazes, _) in splits.items()
                },
                "paths": {name: _summary(*grids) for name, grids in splits.items()},
                **card,
            },
            overwrite=plan.overwrite,
            check=finish,
        )
    return {**card, "seconds": round(time.perf_counter() - began, 2)}
