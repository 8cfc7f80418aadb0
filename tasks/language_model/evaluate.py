"""Evaluate a run of train.py: its own evaluation with a checkpoint's weights, on its own data or another data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from dataset.text.loading import folder_of
from dataset.text.meta import tokenizer_state
from dataset.text.named import ensure_text
from dataset.text.vocabulary import read_vocabularies
from engine.errors import UsageError
from engine.run.load_run import find_checkpoint, read_config
from tasks import evaluation
from tasks.language_model.family import FAMILY


def evaluate_run(args: argparse.Namespace) -> None:
    """Load a run, evaluate it, print and write the result (`tasks.evaluation`). Raises: UsageError."""
    evaluation.evaluate_run(args, override_data=override_data, mode="eval_mode", keys=("eval_iters",))


def override_data(path: Path, names: list[str]) -> dict[str, str]:
    """The config key that evaluates on the data set in `names`. Raises: UsageError if its vocabulary differs."""
    checkpoint = find_checkpoint(path)
    config = read_config(checkpoint, FAMILY.schema)
    kept = read_vocabularies(checkpoint.path.parent.parent)
    if not names:
        for each in kept or ():
            if not each.matches_data():
                raise UsageError(
                    f"{each.path} has a different vocabulary than when this run started, so its ids stand for other "
                    "tokens: put the old data back, or name another data set with --data"
                )
        return {}
    if config.training_mode != "single" or len(names) != 1:
        raise UsageError(f"--data takes one data set, of a run of training_mode=single (here: {config.training_mode})")
    folder, own = folder_of(names[0]), folder_of(config.dataset)
    ensure_text(folder, offline="error")
    if tokenizer_state(folder) != (kept[0].state if kept else tokenizer_state(own)):
        raise UsageError(
            f"--data {folder}: its tokens are not those of {own}, which the model reads: build it with "
            f"--tokenizer-from {own}"
        )
    return {"dataset": names[0]}
