"""Evaluate a run of pretrain_etrm.py: its own evaluation with a checkpoint's weights, on its own tasks or others."""

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
"""Arguments of scripts/evaluate.py, and the keys of a run that they replace."""


def evaluate_run(args: argparse.Namespace) -> None:
    """Load, evaluate, print and write, as the arguments of scripts/evaluate.py ask. Raises: UsageError."""
    evaluation.evaluate_run(args, override_data=override_data, limits=LIMITS)


def override_data(path: Path, given: list[str]) -> dict[str, list[str]]:
    """The config key that evaluates on the data sets `given`; no parameter belongs to a task, so any others will do."""
    return {"data_paths_test": given} if given else {}
