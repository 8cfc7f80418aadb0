"""Evaluate a run of pretrain_etrm.py: its own evaluation with a checkpoint's weights, on its tasks or on others."""

from __future__ import annotations

import argparse
from pathlib import Path

from tasks import evaluation

LIMITS = {
    "max_examples": "final_eval_max_examples",
    "max_groups": "final_eval_max_groups",
    "max_augmentations": "final_eval_max_augmentations",
    "batch_size": "eval_batch_size",
}
"""Argument of scripts/evaluate.py -> config key that it overrides."""


def evaluate_run(args: argparse.Namespace) -> None:
    """Load a run, evaluate it, print and write the result (`tasks.evaluation`). Raises: UsageError."""
    evaluation.evaluate_run(args, override_data=override_data, limits=LIMITS)


def override_data(path: Path, folders: list[str]) -> dict[str, list[str]]:
    """The config key that evaluates on `folders`: any few-shot data will do, since no parameter belongs to a task."""
    return {"data_paths_test": folders} if folders else {}
