"""Train a GPT-style language model: on one text, on a mixture of texts, or on aligned streams of one.

    python train.py --dataset=shakespeare_char --out_dir=out/shakespeare            # the documented defaults
    python train.py --config-name=cfg_train_cpu                                     # minutes on two CPU cores
    python train.py --init_from=resume --out_dir=out/shakespeare                    # go on; everything else is kept
    torchrun --standalone --nproc-per-node=4 train.py --dataset=shakespeare_char --out_dir=out/four
    python train.py --help                                                          # every key, both styles

This file only wires: config -> data -> model and loss -> task -> the shared trainer.
"""

from __future__ import annotations

if __name__ == "__main__":
    from engine.cli.console import begin

    begin(run=True)

from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from engine.cli.main import main
from engine.config import load_synced_config
from engine.distributed import rank, world_size
from engine.io import print_rank0
from launcher.sweep import run_child_if_multirun, sweep
from tasks.language_model.args import ALIASES, TrainConfig, rewrite
from verification.preflight import compare_signatures, preflight

RANK, WORLD_SIZE = rank(), world_size()
SCHEMA = TrainConfig


def read_arch(config: TrainConfig) -> tuple[Any, Any, Any, Any]:
    """(model class, its config, loss class, its config) that `config.arch` names.

    Raises UsageError: an unknown name or key, or an architecture of another family of models.
    """
    from engine.registry import build_config, require, resolve, split_arch

    hyper, loss = split_arch(config.arch)
    name = hyper.pop("name", "")
    model_class = resolve(name, "models", "arch.name")
    require(model_class, name, "arch.name", FAMILY="language_models", DATA_MODE="tokens")
    loss_class = resolve(loss.pop("name", ""), "losses", "arch.loss.name")
    return (
        model_class,
        build_config(model_class, hyper, "arch"),
        loss_class,
        build_config(loss_class, loss, "arch.loss"),
    )


def create_model(config: TrainConfig, shape: Any, runtime: Any) -> tuple[Any, Any]:
    """The model and the loss head that `config.arch` names, on the device."""
    from engine.building import build_module

    model_class, model_config, loss_class, loss_config = read_arch(config)
    make = partial(model_class, model_config, shape, auto_dtype=runtime.dtype, attention=runtime.attention)
    return build_module(make, runtime.device, model_config), loss_class(loss_config)


def check(config: TrainConfig) -> dict[str, Any]:
    """Everything that can be wrong before data are read: names and keys, then the path from command to model."""
    from dataset.text.opening import ensure_data
    from engine.optim.rates import check_optimizer
    from tasks.language_model.task import optimizer_settings

    read_arch(config)
    for name, options in optimizer_settings(config.optimizer):
        check_optimizer(name, options, config.learning_rate)
    if config.decay_lr and config.lr_decay_iters != config.max_iters:
        print_rank0(
            f"note: the learning rate reaches min_lr at lr_decay_iters={config.lr_decay_iters}, "
            f"the run ends at max_iters={config.max_iters}"
        )
    signature = preflight(config, "train", Path(__file__).parent)
    ensure_data(config)  # here, so that a stand-in is the first thing said
    return signature


def build(config: TrainConfig, runtime: Any) -> Any:
    """Data, model, loss and task of one run, with the plan that the trainer follows."""
    from dataset.text.opening import open_text
    from engine.loop.schedule import Plateau, lr_factor
    from engine.task import TrainingPlan
    from models.language_models.gpt import LMShape
    from tasks.language_model.report import LanguageReport
    from tasks.language_model.start import starting_weights
    from tasks.language_model.task import Criterion, LanguageModelTask, param_groups

    rows = config.batch_size * runtime.accumulation * runtime.world_size
    block_size = read_arch(config)[1].block_size
    data = open_text(config, block_size=block_size, rows=rows)
    model, loss_head = create_model(config, LMShape(data.vocab_sizes), runtime)
    decay, plateau = config.decay, Plateau.of(config.decay)
    task = LanguageModelTask(
        model, loss_head, runtime=runtime, batches=data.batches, held_out=data.held_out,
        criterion=Criterion(kind=config.multidataset_criterion, weights=data.weights),
        groups=param_groups(model, lr=config.learning_rate, optimizer=config.optimizer),
        per_dataset_vocabulary=config.multidataset_wte,
    )  # fmt: skip
    steps = 0 if config.eval_only else config.max_iters
    factor = partial(
        lr_factor, decay=decay, warmup=config.warmup_iters, horizon=config.lr_decay_iters,
        floor=config.min_lr / config.learning_rate if config.learning_rate else 0.0,
    )  # fmt: skip
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
        start=starting_weights(config, model, data.folders),
        report=LanguageReport(config, model, data.folders),
        links={"ckpt.pt": "best", "ckpt_last.pt": "latest"},
    )


@hydra.main(config_path="config", config_name="cfg_train", version_base=None)
def launch(hydra_config: DictConfig) -> Any:
    """Compose -> strict config -> run. In a sweep, start the job as a process and give its metric to the sweeper."""
    if job := run_child_if_multirun(hydra_config, __file__):
        return job.metric
    config = load_synced_config(hydra_config, rank=RANK, world_size=WORLD_SIZE, schema=SCHEMA, entry="train")

    from engine.run.launch import run  # imports torch: only once the config is known to be good

    run(config, build, entry="train", check=check, compare=compare_signatures)


if __name__ == "__main__":
    main(launch, schema=SCHEMA, entry="train", aliases=ALIASES, sweep=sweep, rewrite=rewrite)
