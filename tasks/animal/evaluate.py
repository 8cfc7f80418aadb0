"""Evaluate a run of train_animal.py: the same samples, clusters and figures as at its end."""

from __future__ import annotations

import argparse

from tasks import evaluation
from tasks.animal.loading import open_animal_run


def evaluate_run(args: argparse.Namespace) -> None:
    """Load, sample, measure, print and write, as the arguments of scripts/evaluate.py ask. Raises: UsageError."""
    evaluation.evaluate_run(args, opener=open_animal_run)
