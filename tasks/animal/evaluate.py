"""Evaluate a run of train_animal.py: the same samples, clusters and metrics as at its end."""

from __future__ import annotations

import argparse

from tasks import evaluation
from tasks.animal.loading import open_animal_run


def evaluate_run(args: argparse.Namespace) -> None:
    """Load a run, evaluate it, print and write the result (`tasks.evaluation`). Raises: UsageError."""
    evaluation.evaluate_run(args, opener=open_animal_run)
