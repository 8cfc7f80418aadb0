"""Evaluate a run of a feedback script, for scripts/evaluate.py: its own evaluation with a checkpoint's weights."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from engine.registry import family_of
from engine.run.load_run import find_checkpoint, read_config
from tasks import evaluation
from tasks.feedback.args import FeedbackConfig
from tasks.feedback.base import find_base, require_same, weight_hashes
from tasks.loading import home_of

SETTINGS = (
    *("eval_seed", "eval_samples", "eval_max_examples", "eps", "evaluators", "answer_examples"),
    *("generation_steps", "temperature", "block_length"),
)
"""What reproduces the figures: kept with them."""


def evaluate_run(args: argparse.Namespace) -> None:
    """Load, evaluate, print and write, as the arguments of scripts/evaluate.py ask. Raises: UsageError."""
    require_own_base(Path(os.path.abspath(args.checkpoint)))
    evaluation.evaluate_run(args, mode="active_dataset", keys=SETTINGS)


def require_own_base(path: Path) -> None:
    """Raises: UsageError where the base that an adapter's config names is not the one of its training any more."""
    checkpoint = find_checkpoint(path)
    config = read_config(checkpoint, family_of(checkpoint.entry, f"checkpoint {path}: entry").schema)
    if not isinstance(config, FeedbackConfig):
        return
    with contextlib.chdir(home_of(path)):
        base = find_base(config)
        stored = checkpoint.state(rank=0, world_size=1)["task"]["base"]
        require_same(base, weight_hashes(base), stored, str(path))
