"""Evaluate a stored run with its task's final evaluation: the part of scripts/evaluate.py that all families share."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.distributed import is_main
from engine.io import print_rank0, user_path
from engine.run.load_run import OpenedCheckpoint, find_checkpoint, open_checkpoint
from reports.output import write_json_result
from tasks.loading import data_root, refuse_arguments, require_average, warn_of_other_data

OPTIONAL = (
    *("split", "steps", "max_examples", "max_groups", "max_augmentations", "halting", "batch_size"),
    *("rollouts", "vary", "select", "sigma", "data"),
)
"""Arguments that only some families support."""


def evaluate_run(
    args: argparse.Namespace,
    *,
    override_data: Callable[[Path, list[str]], Mapping[str, Any]] | None = None,
    mode: str | None = None,
    keys: Sequence[str] = (),
    limits: Mapping[str, str] | None = None,
    opener: Callable[..., OpenedCheckpoint] = open_checkpoint,
) -> None:
    """Load a checkpoint, evaluate it, print the metrics and write them as JSON, for the arguments of
    scripts/evaluate.py.

    Args:
        override_data: (checkpoint, paths of --data) -> config keys that select these data sets.
        mode: config key that decides what the numbers mean; printed with them.
        keys: further config keys to store with the result.
        limits: argument that limits what is evaluated -> the config key (or block.key) that it overrides; `all` is
            null. Limits appear in the name of the result file.
        opener: opens the checkpoint, for a family whose metrics need more of it than the weights.

    Raises:
        UsageError: an argument that this family does not support, no usable checkpoint or data.
    """
    stored, limits = find_checkpoint(args.checkpoint), limits or {}
    supported = {*limits, *(["data"] if override_data else [])}
    foreign = [name for name in OPTIONAL if name not in supported]
    refuse_arguments(args, foreign, f"a run of {stored.entry}.py", {"split": "test"})
    limited = {name: value for name in limits if (value := getattr(args, name)) is not None}
    target = None if args.json is None else args.json.absolute()
    checkpoint = Path(os.path.abspath(args.checkpoint))
    data_names = [os.path.abspath(user_path(name)) if "/" in name else name for name in args.data or ()]
    with contextlib.chdir(data_root(checkpoint)):
        overrides = dict(override_data(checkpoint, data_names)) if override_data else {}
        overrides |= _limit_overrides(limited, limits, stored.config)
        opened = opener(checkpoint, device=args.device, weights=args.weights or "ema", overrides=overrides)
        require_average(opened, args.weights)
        data = [{key: str(card[key]) for key in ("path", "content_hash")} for card in opened.plan.cards]
        warn_of_other_data(opened.checkpoint, data)
        began = time.perf_counter()
        results = opened.plan.task.evaluate(final=True)
        seconds = time.perf_counter() - began
    if not is_main():
        return
    results = {name: value for name, value in results.items() if name.startswith("eval/")}
    checkpoint_name = "latest" if checkpoint.resolve() == opened.run_dir.resolve() else checkpoint.name
    _print_results(results, opened, checkpoint_name, data, mode)
    settings = {
        "run": str(opened.run_dir),
        "checkpoint": checkpoint_name,
        "step": opened.checkpoint.step,
        "weights": opened.weights,
        **{key: _setting(opened.config, key) for key in [*([mode] if mode else []), *keys, *limits.values()]},
        "data": data,
        "device": str(opened.runtime.device),
    }
    marks = [f"data-{data[0]['content_hash'][:8]}"] if data_names else []
    marks += [f"{name.removeprefix('max_')}-{value}" for name, value in limited.items() if name != "batch_size"]
    marks += ["raw"] if args.weights == "raw" and opened.checkpoint.has_ema else []
    target = target or opened.run_dir / ("_".join([f"evaluation_step_{opened.checkpoint.step}", *marks]) + ".json")
    write_json_result(target, {"settings": settings, "seconds": round(seconds, 3), "results": results})


def _limit_overrides(
    limited: Mapping[str, Any], limits: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The config keys that the given limits override; a key within a block overrides the whole block."""
    overrides: dict[str, Any] = {}
    for name, value in limited.items():
        block, dot, key = limits[name].partition(".")
        chosen = None if value == "all" else value
        overrides[block] = {**overrides.get(block, config[block]), key: chosen} if dot else chosen
    if "max_groups" in limited and "max_examples" not in limited:
        overrides[limits["max_examples"]] = None  # groups are evaluated whole
    return overrides


def _print_results(
    results: Mapping[str, float | None],
    opened: OpenedCheckpoint,
    checkpoint: str,
    data: Sequence[Mapping[str, str]],
    mode: str | None,
) -> None:
    width = max(28, 2 + max(map(len, results), default=0))
    for name, value in results.items():
        print_rank0(f"{name:<{width}}{value:.4f}" if value is not None else f"{name:<{width}}-")
    shown = f", {mode}={getattr(opened.config, mode)}" if mode else ""
    where = f"{opened.run_dir}, {checkpoint}: step {opened.checkpoint.step}, {opened.weights} weights"
    print_rank0(f"checkpoint  {where}{shown}")
    for card in data:
        print_rank0(f"data        {card['path']}, content hash {card['content_hash'][:12]}")


def _setting(config: Any, key: str) -> Any:
    """The value of a config key, or of a key in a block (arch.n_passes)."""
    block, dot, inner = key.partition(".")
    return getattr(config, block)[inner] if dot else getattr(config, block)
