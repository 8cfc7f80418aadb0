"""Write a run of pretrain.py as a folder for `from_pretrained` (`scripts/convert.py pretrained`)."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import print_rank0
from engine.run.load_run import find_checkpoint, open_checkpoint
from reports.model_card import Verify, model_card
from tasks.loading import data_root, require_family
from tasks.recursive_reasoning.family import FAMILY


def write_pretrained(args: Namespace, verify: Verify | None = None) -> None:
    """Write `args.folder` atomically. `verify` checks the run for the model card. Raises: UsageError."""
    source, folder = Path(os.path.abspath(args.source)), Path(os.path.abspath(args.folder))
    require_family(args.source, find_checkpoint(args.source).entry, FAMILY)
    with contextlib.chdir(data_root(source)):
        opened = open_checkpoint(source, device="cpu", weights=args.weights)
    model: Any = opened.plan.task.module
    card = model_card(
        opened.checkpoint,
        name=folder.name,
        weights=opened.weights,
        model=model.facts,
        loading=model.load_snippet(folder.name),
        tags=model.tags,
        license=args.license,
        verify=verify,
    )
    try:
        model.save_pretrained(folder, card=card, puzzle_table=not args.no_table)
    except FileExistsError:
        raise UsageError(f"{args.folder} exists already: remove it or choose another folder") from None
    print_rank0(f"model       {args.folder} ({opened.weights} weights of step {opened.checkpoint.step})")
