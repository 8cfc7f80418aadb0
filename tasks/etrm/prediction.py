"""Predict one task that a run has not seen from its demonstrations, without training; all copies vote."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset.arc.build import ArcBuild, build_subsets
from dataset.arc.tasks import Subset, read_task
from dataset.writing import describe
from engine.run.load_run import find_checkpoint, open_checkpoint
from tasks.etrm.family import FAMILY
from tasks.loading import data_root, refuse_arguments, require_average
from tasks.recursive_reasoning.prediction import (
    COPIES,
    SUBSET,
    canvas_of,
    check_fits,
    folders_here,
    protocol_of,
)

_TRAINING_ARGUMENTS = ("steps", "adapt", "embedding_lr", "lr", "canvas")


def predict_task(args: argparse.Namespace) -> dict[str, Any]:
    """Predict a task, for the arguments of scripts/predict.py; returns the record of `arc@ARC` plus `fit`.

    By default there are as many copies as in the run's own data, at most COPIES: if training saw no augmented tasks,
    augmented copies do not vote.

    Raises:
        UsageError: no usable checkpoint or data, a damaged task, one that does not fit the canvas, an argument that
            is about training.
    """
    model = f"a run of {FAMILY.entry}.py: the task is only shown, on the canvas of the run's data"
    refuse_arguments(args, _TRAINING_ARGUMENTS, model)
    stored = find_checkpoint(args.checkpoint)
    place, task = Path(os.path.abspath(args.checkpoint)), read_task(args.task)
    folders = folders_here(args.checkpoint, stored.config, FAMILY)
    side = canvas_of(args.checkpoint, folders)
    check_fits(task, side)
    copies = args.augmentations
    if copies is None:
        copies = min(COPIES, int(describe(folders[0]).get("num_aug", COPIES)))
    with tempfile.TemporaryDirectory(prefix="loopforge-predict-") as folder, contextlib.chdir(data_root(place)):
        data = Path(folder) / SUBSET
        plan = ArcBuild(
            output_dir=data,
            test_sets=(SUBSET,),
            num_aug=copies,
            seed=args.seed,
            canvas=side,
            data_mode="encoder",
            workers=1,
        )
        # The builder requires training tasks whose tests have answers; any will do, they are never read.
        pairs = (replace(pair, output=pair.input) if pair.output is None else pair for pair in task.pairs)
        unread = Subset("training", (replace(task, pairs=tuple(pairs)),), ())
        card = build_subsets(plan, lambda: [unread, Subset(SUBSET, (task,), (task.path,))])
        settings = {"data_paths_test": [str(data)], "evaluators": [{"name": "arc@ARC"}]}
        settings |= {f"final_eval_max_{what}": None for what in ("examples", "groups", "augmentations")}
        if args.batch_size is not None:
            settings["eval_batch_size"] = args.batch_size
        opened = open_checkpoint(place, device=args.device, weights=args.weights or "ema", overrides=settings)
        require_average(opened, args.weights)
        trained: Any = opened.plan.task
        trained.model.halt_max_steps = args.act_steps or trained.model.halt_max_steps
        evaluator = trained.evaluators[0]
        evaluator.protocol = protocol_of(task, folders, fitted=False)
        trained.evaluate(final=True)
    shown = {"adapt": None, "copies": int(card["counts"]["test"]["puzzles"]), "side": side, "seed": args.seed}
    source = {"checkpoint": str(opened.checkpoint.path), "task": str(task.path), "weights": opened.weights}
    record: dict[str, Any] = evaluator.record
    return {**record, "fit": {**shown, "act_steps": trained.model.halt_max_steps, **source}}
