"""Sample text from a run of train_animal.py, for scripts/sample.py."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import print_rank0
from models.animal.language_model import Sampling
from tasks.animal.loading import open_animal_run
from tasks.language_model.report import start_text
from tasks.loading import data_root, pick_checkpoint, refuse_arguments, with_defaults

DEFAULTS = {"num_samples": 8, "temperature": 1.0, "top_k": [0]}
"""Plain sampling, as in the run's evaluations."""
UNSUPPORTED = ("min_p", "steps", "feedback_every", "block_length", "dataset")
"""Arguments of scripts/sample.py that do not apply to these models."""
AT_ONCE = 256
"""Samples drawn at a time: they are printed as they come, and any number of them fits into memory."""


def sample_run(args: argparse.Namespace) -> None:
    """Load the run that `args` names and print completions, by default of its own prompt. Raises: UsageError."""
    args = with_defaults(args, DEFAULTS)
    refuse_arguments(args, UNSUPPORTED, "a run of train_animal.py")
    if args.prompt is not None and len(args.prompt) > 1:
        raise UsageError(f"--prompt: {len(args.prompt)} were given, expected one")
    settings = {"prompt": args.prompt and start_text(args.prompt[0]), "max_new_tokens": args.max_new_tokens}
    overrides = {key: value for key, value in settings.items() if value is not None}
    run = Path(os.path.abspath(pick_checkpoint(args.run, args.checkpoint)))
    with contextlib.chdir(data_root(run)):
        opened = open_animal_run(run, device=args.device, weights=args.weights, overrides=overrides)
    task: Any = opened.plan.task
    for top_k in args.top_k:
        greedy = args.temperature == 0
        sampling = Sampling(temperature=1.0 if greedy else args.temperature, top_k=1 if greedy else top_k)
        shown = f"top_k {top_k} " if top_k else ""
        for part, first in enumerate(range(0, args.num_samples, AT_ONCE)):
            rows = min(AT_ONCE, args.num_samples - first)
            drawn = task.sampler.draw(args.seed, f"animal/sample/{top_k}", part, rows, sampling=sampling)
            for number, blocks in enumerate(drawn.blocks, first):
                option = blocks.option or "names no option"
                print_rank0(f"--- step {opened.checkpoint.step} {shown}sample {number}: {option}")
                print_rank0(opened.config.prompt + blocks.text)
