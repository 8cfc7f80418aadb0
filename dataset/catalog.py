"""Named data sets: `ensure(path)` makes a data path usable and builds small generated ones on first use.

Text data sets have a catalog of their own, dataset/text/named.py, with `ensure_text`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.format import load_splits
from dataset.sudoku.build import SudokuBuild, build
from dataset.sudoku.published import claims_to_be_published, stand_in_reason
from dataset.text import named as text
from dataset.text.build import describe_text
from dataset.text.named import ensure_text
from dataset.writing import describe as describe_puzzles
from engine.io import UsageError, did_you_mean, print_rank0, user_path

__all__ = ["BUILT", "PUBLISHED", "BuiltSudoku", "build_command", "describe", "ensure", "ensure_text"]


@dataclass(frozen=True, kw_only=True)
class BuiltSudoku:
    """A generated data set that a run may build at launch."""

    size: int
    num_train: int
    num_test: int
    blanks: tuple[int, int]
    num_aug: int = 0

    def flags(self) -> str:
        """The builder's flags for this entry."""
        low, high = self.blanks
        text = f"--size {self.size} --num-train {self.num_train} --num-test {self.num_test} "
        text += f"--blanks {low} {high}"
        return text + (f" --num-aug {self.num_aug}" if self.num_aug else "")


BUILT = {
    "debug-sudoku-4x4": BuiltSudoku(size=4, num_train=64, num_test=16, blanks=(6, 10)),
    "sudoku-default": BuiltSudoku(size=4, num_train=1_000, num_test=64, blanks=(6, 10)),
    "sudoku-4x4": BuiltSudoku(size=4, num_train=20_000, num_test=256, blanks=(6, 10)),
    "sudoku-6x6": BuiltSudoku(size=6, num_train=10_000, num_test=500, blanks=(12, 22), num_aug=7),
    "sudoku-9x9-easy": BuiltSudoku(size=9, num_train=5_000, num_test=500, blanks=(30, 45), num_aug=7),
}
# Made of published data, never at launch: a generated stand-in under these names would be a false claim.
PUBLISHED = {
    "sudoku-extreme-1k-aug-1000": "--subsample-size 1000 --num-aug 1000",
    "sudoku-extreme-full": "",
}
BUILDER = "python -m dataset.build_sudoku_dataset"


def build_command(path: str | Path) -> str | None:
    """The command that builds the data set at `path`, or None for a name that the catalog does not know."""
    root = Path(path)
    target = shlex.quote(str(path))
    if root.name in BUILT:
        return f"{BUILDER} {BUILT[root.name].flags()} --output-dir {target}"
    if root.name in PUBLISHED:
        return " ".join(f"{BUILDER} --input FOLDER {PUBLISHED[root.name]} --output-dir {target}".split())
    return text.build_command(path) if root.name in text.NAMED else None


def describe(path: str | Path) -> dict[str, Any]:
    """The card of the data set at `path`, of puzzles or of text. Raises: UsageError when it is neither."""
    root = Path(path)
    return describe_text(root) if (root / "train.bin").exists() else describe_puzzles(root)


def ensure(path: str | Path, *, build: bool = True) -> Path:
    """The data set at `path`, checked; a known generated one that is missing is built first, if `build` allows it.

    Several ranks may call this at once: the first builds, the others wait for it. One line says that it is
    built.

    Raises: UsageError for a damaged data set, and for a missing one that cannot be built here, with the
    command.
    """
    root = user_path(path)
    if not root.exists():
        if root.name not in BUILT:
            raise UsageError(_missing(root))
        if not build:
            raise UsageError(f"{root} does not exist, and the config of a run builds no data: {build_command(root)}")
        _build_once(root, BUILT[root.name])
    for split in ("train", "test"):
        load_splits([root], split)
    _say_stand_in(root)
    return root


def _say_stand_in(root: Path) -> None:
    if claims_to_be_published(root) and (reason := stand_in_reason(root, describe_puzzles(root))) is not None:
        command = build_command(root)
        print_rank0(
            f"STAND-IN DATA: {root} is {reason}; figures are not comparable (stand_in: true)."
            + (f" The real one: {command}" if command else "")
        )


def _build_once(root: Path, entry: BuiltSudoku) -> None:
    print_rank0(
        f"{root} is missing: building it now ({entry.num_train} training and {entry.num_test} test puzzles "
        f"of {entry.size}x{entry.size}, generated)"
    )
    plan = SudokuBuild(
        output_dir=root,
        size=entry.size,
        num_train=entry.num_train,
        num_test=entry.num_test,
        blanks=entry.blanks,
        num_aug=entry.num_aug,
    )
    try:
        build(plan)
    except UsageError:
        # Another rank or run held the lock and has finished: its result is ours, bit for bit.
        if not root.exists():
            raise


def _missing(root: Path) -> str:
    command = build_command(root)
    if root.name in text.NAMED:
        return f"{root} does not exist, and it would hold text, not puzzles ({command}): train.py reads such data sets"
    if command is not None:
        return (
            f"{root} does not exist and is made from the public Sudoku-Extreme CSV (train.csv, test.csv): "
            f"{command} (FOLDER holds the two files; --download in its place fetches them)"
        )
    return f"data set {root} does not exist and '{root.name}' cannot be built at launch: " + did_you_mean(
        root.name, BUILT
    )
