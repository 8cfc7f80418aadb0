"""A run of pretrain_etrm.py loaded for drawing: every question comes with the demonstrations of its puzzle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset.fewshot import few_shot
from tasks.etrm.family import FAMILY
from tasks.recursive_reasoning import loading
from tasks.recursive_reasoning.loading import PuzzleRun


def load_puzzle_run(run: str | Path, **options: Any) -> PuzzleRun:
    """As tasks.recursive_reasoning.loading.load_puzzle_run, which has the options. Raises: UsageError."""
    loaded = loading.load_puzzle_run(run, family=FAMILY, **options)
    return replace(loaded, splits=[*few_shot(loaded.splits)])
