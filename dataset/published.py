"""Published data sets that are recognised by their size: which folders claim their names, and whether rightly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PublishedSet:
    """A data set whose test file is always used completely, so that its size identifies it."""

    name: str
    mark: str
    """Part of a folder's name (letters and digits only) by which it claims to be this set."""
    what: str
    """What its examples are called, in messages."""
    test_examples: int

    def claims_to_be(self, root: str | Path) -> bool:
        """Whether a folder is named after this set, in any spelling."""
        return self.mark in "".join(char for char in Path(root).absolute().name.lower() if char.isalnum())

    def stand_in_reason(self, root: str | Path, card: Mapping[str, Any]) -> str | None:
        """Why the data set at `root` is not the one that its name claims; None if it is."""
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
