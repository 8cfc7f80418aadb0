"""Published data sets that are recognised by their size: which folders bear their names, and whether they may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PublishedSet:
    """A data set whose test file is always taken whole, so that its size distinguishes it from anything else."""

    name: str
    mark: str
    """What the name of a folder contains that claims to be it, letters and digits only."""
    what: str
    """What its examples are called."""
    test_examples: int

    def claims_to_be(self, root: str | Path) -> bool:
        """Whether a folder is named after it, however that is spelt."""
        return self.mark in "".join(sign for sign in Path(root).absolute().name.lower() if sign.isalnum())

    def stand_in_reason(self, root: str | Path, card: Mapping[str, Any]) -> str | None:
        """What the data set at `root` is in place of the one of its name; None where the name is right."""
        if not self.claims_to_be(root):
            return None
        if card.get("source") == "generated":
            return f"made of generated {self.what}, not of {self.name}"
        count = card.get("counts", {}).get("test", {}).get("examples")
        if count == self.test_examples or card.get("min_difficulty"):
            return None
        return f"not {self.name}, whose test split has {self.test_examples:,} {self.what} (here {count or 0:,})"


SUDOKU_EXTREME = PublishedSet("Sudoku-Extreme", "sudokuextreme", "puzzles", 422_786)
MAZE_HARD = PublishedSet("Maze-Hard", "maze30x30hard", "mazes", 1_000)
BY_SIZE = (SUDOKU_EXTREME, MAZE_HARD)
