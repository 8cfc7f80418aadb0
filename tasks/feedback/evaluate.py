"""Evaluate a run of a feedback script: its own evaluation with a checkpoint's weights."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import print_rank0
from engine.registry import family_of
from engine.run.load_run import OpenedCheckpoint, find_checkpoint, open_checkpoint, read_config
from tasks import evaluation
from tasks.feedback.args import INDOMAIN_KEYS, FeedbackConfig
from tasks.feedback.base import base_overrides, find_indomain

SETTINGS = (
    *("eval_seed", "eval_samples", "eval_t_grid", "eval_max_examples", "eps", "evaluators", "answer_examples"),
    *("generation_steps", "generation_schedule", "temperature", "block_length"),
)
"""Config keys stored with the result, so that it can be reproduced."""
ADAPTER_SETTINGS = ("feedback_every", *INDOMAIN_KEYS)
"""Further such keys of adapters."""


def evaluate_run(args: argparse.Namespace) -> None:
    """Load a run, evaluate it, print and write the result (`tasks.evaluation`); `--steps` is the number of passes of a
    hypernetwork. Raises: UsageError."""
    stored = find_checkpoint(args.checkpoint)
    limits = {"steps": "arch.n_passes"} if "n_passes" in stored.config["arch"] else {}
    keys = (*SETTINGS, *(ADAPTER_SETTINGS if "ff_checkpoint_dir" in stored.config else ()))
    evaluation.evaluate_run(args, mode="active_dataset", keys=keys, limits=limits, opener=open_with_base)


def open_with_base(path: Path, *, overrides: Mapping[str, Any], **how: Any) -> OpenedCheckpoint:
    """`open_checkpoint`, with an adapter on the base that it was trained on. If the in-domain base is gone, gap_closed
    is left out.

    Raises: UsageError as `open_checkpoint`, and if the config names a different base by now.
    """
    checkpoint = find_checkpoint(path)
    config = read_config(checkpoint, family_of(checkpoint.entry, f"checkpoint {path}: entry").schema)
    base: dict[str, Any] = {}
    if isinstance(config, FeedbackConfig):
        base |= base_overrides(checkpoint, config)
        try:
            find_indomain(config)
        except UsageError as error:
            print_rank0(f"note: gap_closed is left out, {error}")
            base |= dict.fromkeys(INDOMAIN_KEYS)
    return open_checkpoint(path, overrides={**overrides, **base}, **how)
