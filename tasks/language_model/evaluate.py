"""Evaluate a run of train.py: its own evaluation with a checkpoint's weights, on its own data or another set."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from pathlib import Path

from dataset.text.meta import tokenizer_state
from dataset.text.named import ensure_text
from dataset.text.opening import folder_of
from dataset.text.vocabulary import read_vocabularies
from engine.distributed import is_main
from engine.errors import UsageError
from engine.io import print_rank0, user_path
from engine.registry import family_of
from engine.run.load_run import find_checkpoint, open_checkpoint, read_config
from reports.output import write_json_result
from tasks.loading import home_of, require_average, warn_of_other_data

PUZZLES_ONLY = {"split": "test", "steps": None, "max_examples": None, "halting": None, "batch_size": None}
"""Arguments that have a meaning for runs of pretrain.py only, with their defaults."""


def evaluate_run(args: argparse.Namespace) -> None:
    """Load, evaluate, print and write, as the arguments of scripts/evaluate.py ask. Raises: UsageError."""
    for name, default in PUZZLES_ONLY.items():
        if getattr(args, name) != default:
            raise UsageError(f"--{name.replace('_', '-')} has no meaning for a run of train.py")
    target = None if args.json is None else args.json.absolute()
    checkpoint = Path(os.path.abspath(args.checkpoint))
    given = [os.path.abspath(user_path(name)) if "/" in name else name for name in args.data or ()]
    with contextlib.chdir(home_of(checkpoint)):
        data_override = override_data(checkpoint, given)
        opened = open_checkpoint(checkpoint, device=args.device, weights=args.weights or "ema", overrides=data_override)
        require_average(opened, args)
        data = [{key: str(card[key]) for key in ("path", "content_hash")} for card in opened.plan.cards]
        warn_of_other_data(opened.checkpoint, data)
        began = time.perf_counter()
        values = opened.plan.task.evaluate(final=True)
        seconds = time.perf_counter() - began
    if not is_main():
        return
    values = {name: value for name, value in values.items() if name.startswith("eval/")}
    for name, value in values.items():
        print_rank0(f"{name:<28}{value:.4f}")
    step, mode = opened.checkpoint.step, opened.config.eval_mode
    asked = "latest" if checkpoint.resolve() == opened.run_dir.resolve() else checkpoint.name
    print_rank0(f"checkpoint  {opened.run_dir}, {asked}: step {step}, {opened.weights} weights, eval_mode={mode}")
    for entry in data:
        print_rank0(f"data        {entry['path']}, content hash {entry['content_hash'][:12]}")
    marks = [f"data-{data[0]['content_hash'][:8]}"] if given else []
    marks += ["raw"] if args.weights == "raw" and opened.checkpoint.has_ema else []
    settings = {
        "run": str(opened.run_dir),
        "checkpoint": asked,
        "step": step,
        "weights": opened.weights,
        "eval_mode": mode,
        "eval_iters": opened.config.eval_iters,
        "data": data,
        "device": str(opened.runtime.device),
    }
    target = target or opened.run_dir / ("_".join([f"evaluation_step_{step}", *marks]) + ".json")
    write_json_result(target, {"settings": settings, "seconds": round(seconds, 3), "results": values})


def override_data(path: Path, given: list[str]) -> dict[str, str]:
    """The config key that evaluates on the data set `given`. Raises: UsageError when the model would misread it."""
    checkpoint = find_checkpoint(path)
    config = read_config(checkpoint, family_of(checkpoint.entry, f"checkpoint {checkpoint.path}: entry").schema)
    kept = read_vocabularies(checkpoint.path.parent.parent)
    if not given:
        for each in kept or ():
            if not each.of_data():
                raise UsageError(
                    f"{each.path} has another vocabulary than when this run began, so its token ids mean other words "
                    "to the model: put the old data back, or name another data set with --data"
                )
        return {}
    if config.training_mode != "single" or len(given) != 1:
        raise UsageError(f"--data takes one data set, of a run of training_mode=single (here: {config.training_mode})")
    folder, own = folder_of(given[0]), folder_of(config.dataset)
    ensure_text(folder, offline="error")
    if tokenizer_state(folder) != (kept[0].state if kept else tokenizer_state(own)):
        raise UsageError(
            f"--data {folder}: its tokens are not those of {own}, which the model reads: build it with "
            f"--tokenizer-from {own}"
        )
    return {"dataset": given[0]}
