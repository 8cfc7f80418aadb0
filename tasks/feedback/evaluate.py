"""Evaluate a run of a feedback script, for scripts/evaluate.py: its own evaluation with a checkpoint's weights."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.registry import family_of
from engine.run.load_run import OpenedCheckpoint, find_checkpoint, open_checkpoint, read_config
from tasks import evaluation
from tasks.feedback.args import FeedbackConfig
from tasks.feedback.base import own_base

SETTINGS = (
    *("eval_seed", "eval_samples", "eval_max_examples", "eps", "evaluators", "answer_examples"),
    *("generation_steps", "generation_schedule", "temperature", "block_length"),
)
"""What reproduces the figures: kept with them."""


def evaluate_run(args: argparse.Namespace) -> None:
    """Load, evaluate, print and write, as the arguments of scripts/evaluate.py ask; `--steps` are the passes of a
    hypernetwork. Raises: UsageError."""
    limits = {"steps": "arch.n_passes"} if "n_passes" in find_checkpoint(args.checkpoint).config["arch"] else {}
    evaluation.evaluate_run(args, mode="active_dataset", keys=SETTINGS, limits=limits, opener=open_on_own_base)


def open_on_own_base(path: Path, *, overrides: Mapping[str, Any], **how: Any) -> OpenedCheckpoint:
    """`open_checkpoint`; an adapter is put on the base of its training.

    Raises: UsageError as `open_checkpoint`, and where the base that its config names is another one now.
    """
    checkpoint = find_checkpoint(path)
    config = read_config(checkpoint, family_of(checkpoint.entry, f"checkpoint {path}: entry").schema)
    own = own_base(checkpoint, config) if isinstance(config, FeedbackConfig) else {}
    return open_checkpoint(path, overrides={**overrides, **own}, **how)
