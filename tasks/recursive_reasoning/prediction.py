"""Predict one task that a run has not seen, by fitting its puzzle embedding on the task's demonstrations.

A model with puzzle embeddings identifies a task by a row of its table. A new task gets new rows, one for each augmented
copy, initialised to the mean of the trained rows and trained on the demonstrations by the run's own training step, with
the network frozen (or trained too). Then all copies of each test grid vote (`arc@ARC`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.arc.augment import SEPARATOR
from dataset.arc.build import ArcBuild, build_subsets
from dataset.arc.leakage import leakage_report, symmetric_key
from dataset.arc.tasks import Pair, Subset, Task, read_task
from dataset.arc.tokens import FIRST_COLOUR, VOCAB_SIZE, crop_all, side_of
from dataset.format import PuzzleSplit, load_splits
from dataset.metadata import read_metadata
from engine.checkpoint.state_tree import load_weights
from engine.device import make_runtime
from engine.errors import UsageError
from engine.io import print_rank0, read_json, user_path
from engine.loggers.sinks import ConsoleSink
from engine.loop.trainer import Trainer
from engine.registry import Family
from engine.run.load_run import find_checkpoint, read_config
from engine.signals import StopSignal
from engine.task import TrainingPlan
from evaluators.voting.tasks import Protocol
from tasks.loading import data_root, stored_weights, with_defaults
from tasks.recursive_reasoning.build import build
from tasks.recursive_reasoning.family import FAMILY

TABLE, TOKEN_EMBEDDING = "inner.puzzle_emb.weights", "inner.embed_tokens.embedding_weight"
SUBSET = "task"
COPIES = 50
"""Default number of augmented copies, besides the task itself."""
DEFAULTS = {"steps": 200, "adapt": "embedding", "augmentations": COPIES, "batch_size": 32}


def predict_task(args: argparse.Namespace) -> dict[str, Any]:
    """Fit a task and vote, for the arguments of scripts/predict.py; returns the record of `arc@ARC` plus `fit`.

    Raises:
        UsageError: no usable checkpoint, a run without puzzle embeddings or on other data than ARC grids, a damaged
            task, or one that does not fit the model's canvas.
    """
    args = with_defaults(args, DEFAULTS)
    checkpoint = find_checkpoint(args.checkpoint, checksums=True)
    weights, kind = stored_weights(checkpoint, args.weights or "ema")
    if TABLE not in weights:
        raise UsageError(f"{args.checkpoint} has no puzzle embedding (arch.puzzle_emb_ndim=0): there is nothing to fit")
    if (size := len(weights[TOKEN_EMBEDDING])) != VOCAB_SIZE:
        raise UsageError(f"{args.checkpoint} knows {size} tokens, ARC grids have {VOCAB_SIZE}: name a run on ARC data")
    task = read_task(args.task)
    folders = folders_here(args.checkpoint, checkpoint.config, FAMILY)
    side = args.canvas or canvas_of(args.checkpoint, folders)
    check_fits(task, side)
    protocol = protocol_of(task, folders)
    with tempfile.TemporaryDirectory(prefix="loopforge-predict-") as folder:
        data = Path(folder) / SUBSET
        plan = ArcBuild(
            output_dir=data, test_sets=(SUBSET,), num_aug=args.augmentations, seed=args.seed, canvas=side, workers=1
        )
        card = build_subsets(plan, lambda: [Subset(SUBSET, (task,), (task.path,))])
        copies = int(card["counts"]["train"]["puzzles"])
        overrides = _settings(args, str(data), len(task.of("train")))
        config = read_config(checkpoint, FAMILY.schema, device=args.device, overrides=overrides)
        runtime = make_runtime(config)
        training = build(config, runtime)
        weights[TABLE] = mean_row(weights[TABLE]).repeat(copies + 1, 1)
        load_weights(training.task.module, weights)
        record = _fit(training, config, runtime, args, protocol)
        model: Any = training.task.module
        act_steps = model.halt_max_steps
    fitted = {"adapt": args.adapt, "steps": args.steps, "copies": copies, "act_steps": act_steps, "side": side}
    source = {"checkpoint": str(checkpoint.path), "task": str(task.path), "weights": kind}
    return {**record, "fit": {**fitted, "seed": args.seed, **source}}


def _settings(args: argparse.Namespace, data: str, demonstrations: int) -> dict[str, Any]:
    """The config overrides for fitting one task."""
    puzzles = -(-args.batch_size // demonstrations)  # enough to fill a batch
    settings: dict[str, Any] = {
        "data_paths": [data],
        "data_paths_test": [],
        "evaluators": [{"name": "arc@ARC"}],
        "seed": args.seed,
        "global_batch_size": args.batch_size,
        "eval_batch_size": args.batch_size,
        "epochs": puzzles * max(args.steps, 1),
        "eval_interval": None,
        **dict.fromkeys(("max_steps", "max_seconds", "total_steps", "stats_interval")),
        "lr_warmup_steps": 0,
        "lr_min_ratio": 1.0,
        "freeze_weights": args.adapt == "embedding",
        "ema": False,
        "compile": "off",
        "log_interval": max(1, args.steps // 10),
    }
    settings |= {f"final_eval_max_{what}": None for what in ("examples", "groups", "augmentations")}
    if args.embedding_lr is not None:
        settings["puzzle_emb_lr"] = args.embedding_lr
    if args.lr is not None:
        settings["lr"] = args.lr
    return settings


def _fit(plan: TrainingPlan, config: Any, runtime: Any, args: argparse.Namespace, protocol: Protocol) -> dict[str, Any]:
    """Train the embedding, then let the copies vote; returns the evaluator's record."""
    task: Any = plan.task
    evaluator = task.evaluators[0]
    evaluator.protocol = protocol
    if args.steps:
        console = ConsoleSink(args.steps)
        plan.final_eval = False
        plan.total_steps = args.steps

        def write(step: int, values: Mapping[str, Any]) -> None:
            names = ("train/loss", "train/accuracy", "train/exact_accuracy")
            console.write(step, {name: values[name] for name in names if values.get(name) is not None})

        Trainer(plan, config, runtime, save=lambda *_: None, write=write, stop=StopSignal()).fit()
    task.model.halt_max_steps = args.act_steps or task.model.halt_max_steps
    task.evaluate(final=True)
    record: dict[str, Any] = evaluator.record
    return record


def mean_row(table: Tensor) -> Tensor:
    """The mean [1, E] of the non-zero rows of a table [N, E], those that training has updated; zero without any."""
    total, count = torch.zeros(table.shape[1], dtype=torch.float64), 0
    for rows in table.split(1 << 16):  # the table may be gigabytes
        trained = rows[(rows != 0).any(dim=1)]
        total, count = total + trained.double().sum(dim=0), count + len(trained)
    return (total / max(count, 1)).to(torch.float32)[None]


# --- whether the run was trained on the task --------------------------------------------------------------------------


def folders_here(checkpoint: Path, config: Mapping[str, Any], family: Family) -> list[Path]:
    """The data folders of a run of `family` that exist on this machine."""
    place = Path(os.path.abspath(checkpoint))
    with contextlib.suppress(OSError), contextlib.chdir(data_root(place)):
        return [user_path(name).resolve() for name in family.data_folders(config) if user_path(name).is_dir()]
    return []


def canvas_of(checkpoint: Path, folders: Sequence[Path]) -> int:
    """Side length of the canvas that the run was trained on. Raises: UsageError if its data is not here."""
    if not folders:
        raise UsageError(f"the data of {checkpoint} are not here, which give the size of its canvas: pass --canvas")
    try:
        return side_of(read_metadata(folders[0], "train").seq_len)
    except ValueError as error:
        raise UsageError(f"{folders[0]} holds no ARC grids: {error}") from None


def check_fits(task: Task, side: int) -> None:
    """Raise UsageError if a grid of the task is larger than the canvas."""
    for kind in ("train", "test"):
        for number, pair in enumerate(task.of(kind)):
            if not pair.fits(side):
                raise UsageError(
                    f"{task.path}: task {task.name}, {kind} pair {number} does not fit the canvas of the model, "
                    f"{side}x{side}"
                )


def protocol_of(task: Task, folders: Sequence[Path], *, fitted: bool = True) -> Protocol:
    """The evaluation protocol: class iii if the run was trained on a demonstration of the task, else ii (i if nothing
    is `fitted` to the task); a leak if it was trained on one of its tests.

    Grids that differ by symmetry or colours are equal, as in the leakage report of a data set.
    """
    usual = "ii" if fitted else "i"
    if not folders:
        print_rank0("note: the run's data are not here, so whether it was trained on this task is not known")
        return Protocol(usual, "unchecked")
    pairs = tuple(pair for folder in folders for split in load_splits([folder], "train") for pair in _originals(split))
    trained = Subset("trained", (Task("", task.path, pairs),), ())
    leaks = leakage_report([trained, Subset(SUBSET, (task,), ())], (SUBSET,))["tests"]
    known = {symmetric_key(pair.input, pair.output) for pair in pairs if pair.output is not None}
    shown = [symmetric_key(pair.input, pair.output) for pair in task.of("train") if pair.output is not None]
    joint = not known.isdisjoint(shown)
    for what, leaked in (("demonstrations", joint), ("tests", leaks)):
        if leaked:
            print_rank0(f"note: {what} of {task.name} occur in the training data of the run")
    return Protocol("iii" if joint else usual, "leak" if leaks else "clean")


def _originals(split: PuzzleSplit) -> Iterator[Pair]:
    """The pairs of all original puzzles, without augmented copies."""
    names = read_json(split.root / "identifiers.json")
    puzzles = [
        number for number, identifier in enumerate(split.puzzle_identifiers) if SEPARATOR not in str(names[identifier])
    ]
    for begin in range(0, len(puzzles), 256):
        rows = [np.arange(*split.puzzle_indices[puzzle : puzzle + 2]) for puzzle in puzzles[begin : begin + 256]]
        batch = split.batch(np.concatenate(rows))
        for query, answer in zip(_grids(batch["inputs"]), _grids(batch["labels"]), strict=True):
            yield Pair("train", query, answer)


def _grids(tokens: np.ndarray) -> list[np.ndarray]:
    """Crop the grids from n canvases, wherever they are placed; tokens [n, T]."""
    side = side_of(tokens.shape[1])
    canvases = tokens.reshape(-1, side, side)
    used = canvases >= FIRST_COLOUR
    rows, columns = used.any(axis=2).argmax(axis=1), used.any(axis=1).argmax(axis=1)
    shifted = [np.roll(canvas, (-r, -c), (0, 1)) for canvas, r, c in zip(canvases, rows, columns, strict=True)]
    cropped, heights, widths = crop_all(np.stack(shifted).reshape(tokens.shape))
    return [grid[:height, :width] for grid, height, width in zip(cropped, heights, widths, strict=True)]
