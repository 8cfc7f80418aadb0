"""Load a run of pretrain_etrm.py for visualisation: every query comes with the demonstrations of its puzzle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset.fewshot import few_shot
from tasks.etrm.family import FAMILY
from tasks.recursive_reasoning import loading
from tasks.recursive_reasoning.loading import PuzzleRun


def load_puzzle_run(run: str | Path, **options: Any) -> PuzzleRun:
    """Like tasks.recursive_reasoning.loading.load_puzzle_run, with the same options. Raises: UsageError."""
    loaded = loading.load_puzzle_run(run, family=FAMILY, **options)
    return replace(loaded, splits=[*few_shot(loaded.splits)])
