"""Sudoku-Extreme is published data: which folders bear its name, and whether they may."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEST_PUZZLES = 422_786
"""The public test file is always taken whole, so its size tells Sudoku-Extreme from anything else."""


def claims_to_be_published(root: str | Path) -> bool:
    """Whether a folder is named after Sudoku-Extreme, however it is spelt."""
    name = "".join(sign for sign in Path(root).absolute().name.lower() if sign.isalnum())
    return "sudokuextreme" in name


def stand_in_reason(root: str | Path, card: Mapping[str, Any]) -> str | None:
    """What the data set at `root` is in place of the Sudoku-Extreme of its name; None where the name is right."""
    if not claims_to_be_published(root):
        return None
    if card.get("source") == "generated":
        return "made of generated puzzles, not of Sudoku-Extreme"
    count = card.get("counts", {}).get("test", {}).get("examples")
    if count == TEST_PUZZLES or card.get("min_difficulty"):
        return None
    return f"not Sudoku-Extreme, whose test split has {TEST_PUZZLES:,} puzzles (here {count or 0:,})"
