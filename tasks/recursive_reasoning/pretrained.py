"""A run of pretrain.py as a folder for `from_pretrained`: what `scripts/convert.py pretrained` does."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import print_rank0
from engine.run.files import read_json
from engine.run.load_run import find_checkpoint, open_checkpoint
from tasks.loading import home_of
from tasks.recursive_reasoning.family import FAMILY


def write_pretrained(args: Namespace) -> None:
    """Write `args.folder`, whole or not at all. Raises: UsageError."""
    source, folder = Path(os.path.abspath(args.source)), Path(os.path.abspath(args.folder))
    if (entry := find_checkpoint(args.source).entry) != FAMILY.entry:
        raise UsageError(f"{args.source} was written by {entry}.py: expected a run of {FAMILY.entry}.py")
    with contextlib.chdir(home_of(source)):
        opened = open_checkpoint(source, device="cpu", weights=args.weights)
    model: Any = opened.plan.task.module
    card = model.model_card(folder.name, facts_of(opened))
    try:
        model.save_pretrained(folder, card=card, puzzle_table=not args.no_table)
    except FileExistsError:
        raise UsageError(f"{args.folder} exists already: remove it or choose another folder") from None
    print_rank0(f"model       {args.folder} ({opened.weights} weights of step {opened.checkpoint.step})")


def facts_of(opened: Any) -> dict[str, Any]:
    """What a model card tells of a run: training, data, and the last evaluation where it is of this checkpoint."""
    config, checkpoint = opened.config, opened.checkpoint
    facts = {
        "weights": {"ema": "averaged", "raw": "as trained"}[opened.weights] + f", step {checkpoint.step:,}",
        "cycles, steps of thought": f"{model_key(config, 'H_cycles')} x {model_key(config, 'L_cycles')}, "
        f"{model_key(config, 'halt_max_steps')}",
        "batch, learning rate": f"{config.global_batch_size}, {config.lr:g}",
    }
    for card in opened.plan.cards:
        stands_in = ", a stand-in" if card.get("stand_in") else ""
        facts[f"data `{card['path']}`"] = f"content hash {str(card.get('content_hash'))[:12]}{stands_in}"
    summary = read_json(opened.run_dir / "summary.json")
    results = summary.get("results") if summary.get("step") == checkpoint.step else None
    for name, value in results.items() if isinstance(results, dict) else ():
        if isinstance(value, float | int) and name.endswith("accuracy"):
            facts[name] = f"{value:.4f}"
    return facts


def model_key(config: Any, key: str) -> Any:
    """A key of the architecture; its default is not shown."""
    return config.arch.get(key, "default")
