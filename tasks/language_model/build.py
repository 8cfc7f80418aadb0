"""Build a run of train.py: data, model, loss, task, and the plan for the trainer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dataset.text.loading import open_text
from engine import building
from engine.io import print_rank0
from engine.loop.schedule import Plateau, lr_factor
from engine.task import Runtime, TrainingPlan
from models.language_models.gpt import LMShape
from tasks.language_model.args import TrainConfig
from tasks.language_model.family import FAMILY
from tasks.language_model.report import LanguageReport
from tasks.language_model.start import initial_weights
from tasks.language_model.task import Criterion, LanguageModelTask, param_groups
from tasks.optimizers import check_optimizers


def check(config: TrainConfig) -> None:
    """Check the architecture and the optimizer of a config. Raises: UsageError."""
    FAMILY.read_arch(config)
    check_optimizers(config.optimizer, config.learning_rate)
    if config.decay_lr and config.lr_decay_iters != config.max_iters:
        print_rank0(
            f"note: the learning rate reaches min_lr at lr_decay_iters={config.lr_decay_iters}, "
            f"the run ends at max_iters={config.max_iters}"
        )


def create_model(config: TrainConfig, shape: LMShape, runtime: Runtime) -> tuple[Any, Any]:
    """(model, loss head) of `config.arch`, on the device."""
    return building.create_model(FAMILY.read_arch(config), shape, runtime)


def build(
    config: TrainConfig, runtime: Runtime, create_model: Callable[..., tuple[Any, Any]] = create_model
) -> TrainingPlan:
    """Build data, model, loss and task of a run; returns the plan for the trainer."""
    rows = config.batch_size * runtime.accumulation * runtime.world_size
    block_size = FAMILY.read_arch(config).model_config.block_size
    data = open_text(config, block_size=block_size, rows=rows)
    model, loss_head = create_model(config, LMShape(data.vocab_sizes), runtime)
    decay, plateau = config.decay, Plateau.of(config.decay)
    task = LanguageModelTask(
        model,
        loss_head,
        runtime=runtime,
        batches=data.batches,
        held_out=data.held_out,
        criterion=Criterion(kind=config.multidataset_criterion, weights=data.weights),
        groups=param_groups(model, lr=config.learning_rate, optimizer=config.optimizer),
        per_dataset_vocabulary=config.multidataset_wte,
    )
    steps = 0 if config.eval_only else config.max_iters
    factor = partial(
        lr_factor,
        decay=decay,
        warmup=config.warmup_iters,
        horizon=config.lr_decay_iters,
        floor=config.min_lr / config.learning_rate if config.learning_rate else 0.0,
    )
    return TrainingPlan(
        task=task,
        total_steps=steps,
        schedule=lambda step: factor(step, drops=plateau.drops if plateau is not None else 0),
        eval_steps=range(0, steps + 1, config.eval_interval),
        plateau=plateau,
        primary_metric="eval/val_loss",
        covers=data.covers + (f", {config.multidataset_criterion} of them" if len(data.weights) > 1 else ""),
        metric_mode="min",
        batch_key="batch_size",
        batch_rows=rows,
        step_counts={"tokens": rows * block_size},
        cards=data.cards,
        start=initial_weights(config, model, data.folders),
        report=LanguageReport(config, model, data.folders),
        links={"ckpt.pt": "best", "ckpt_last.pt": "latest"},
    )
