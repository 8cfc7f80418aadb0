"""Evaluate a run of a feedback script, for scripts/evaluate.py: its own evaluation with a checkpoint's weights."""

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
from tasks.feedback.base import find_indomain, own_base

SETTINGS = (
    *("eval_seed", "eval_samples", "eval_t_grid", "eval_max_examples", "eps", "evaluators", "answer_examples"),
    *("generation_steps", "generation_schedule", "temperature", "block_length"),
)
"""What reproduces the figures: kept with them."""
ADAPTED = ("feedback_every", *INDOMAIN_KEYS)
"""The same of adapters alone."""


def evaluate_run(args: argparse.Namespace) -> None:
    """Load, evaluate, print and write, as the arguments of scripts/evaluate.py ask; `--steps` are the passes of a
    hypernetwork. Raises: UsageError."""
    stored = find_checkpoint(args.checkpoint)
    limits = {"steps": "arch.n_passes"} if "n_passes" in stored.config["arch"] else {}
    keys = (*SETTINGS, *(ADAPTED if "ff_checkpoint_dir" in stored.config else ()))
    evaluation.evaluate_run(args, mode="active_dataset", keys=keys, limits=limits, opener=open_on_own_base)


def open_on_own_base(path: Path, *, overrides: Mapping[str, Any], **how: Any) -> OpenedCheckpoint:
    """`open_checkpoint`; an adapter is put on the base of its training. The base that it is compared with may be gone:
    the figure of that is left out then.

    Raises: UsageError as `open_checkpoint`, and where the base that its config names is another one now.
    """
    checkpoint = find_checkpoint(path)
    config = read_config(checkpoint, family_of(checkpoint.entry, f"checkpoint {path}: entry").schema)
    own: dict[str, Any] = {}
    if isinstance(config, FeedbackConfig):
        own |= own_base(checkpoint, config)
        try:
            find_indomain(config)
        except UsageError as error:
            print_rank0(f"note: gap_closed is left out, {error}")
            own |= dict.fromkeys(INDOMAIN_KEYS)
    return open_checkpoint(path, overrides={**overrides, **own}, **how)
