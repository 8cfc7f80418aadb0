"""Maze-Hard is published data: which folders bear its name, and whether they may."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEST_MAZES = 1000
"""The public test file is always taken whole."""


def claims_to_be_published(root: str | Path) -> bool:
    """Whether a folder is named after Maze-Hard, however it is spelt."""
    name = "".join(sign for sign in Path(root).absolute().name.lower() if sign.isalnum())
    return "maze30x30hard" in name


def stand_in_reason(root: str | Path, card: Mapping[str, Any]) -> str | None:
    """What the data set at `root` is in place of the Maze-Hard of its name; None where the name is right."""
    if not claims_to_be_published(root):
        return None
    if card.get("source") == "generated":
        return "made of generated mazes, not of Maze-Hard"
    count = card.get("counts", {}).get("test", {}).get("examples")
    return (
        None
        if count == TEST_MAZES
        else f"not Maze-Hard, whose test split has {TEST_MAZES:,} mazes (here {count or 0:,})"
    )
