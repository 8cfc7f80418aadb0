"""Recursive reasoning with puzzle embeddings: TRM and HRM on Sudoku (mazes and ARC-AGI to come).

    python pretrain.py device=cpu max_steps=10                                      # smoke test, under a minute
    python pretrain.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu             # learns 4x4 Sudoku on a laptop
    torchrun --nproc-per-node=4 pretrain.py --config-name=cfg_pretrain_sudoku_extreme_mlp
    python pretrain.py --help                                                       # every key, both styles

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
from launcher.sweep import run_child_if_multirun, sweep
from tasks.recursive_reasoning.args import PretrainConfig
from verification.preflight import compare_signatures, preflight

RANK, WORLD_SIZE = rank(), world_size()
SCHEMA = PretrainConfig
ALIASES = {"checkpoint_path": "run_dir", "data_path": "data_paths"}


def read_arch(config: PretrainConfig) -> tuple[Any, Any, Any, Any]:
    """(model class, its config, loss class, its config) that `config.arch` names.

    Raises UsageError: an unknown name or key, or an architecture of another family of models.
    """
    from engine.registry import build_config, require, resolve, split_arch

    hyper, loss = split_arch(config.arch)
    name = hyper.pop("name", "")
    model_class = resolve(name, "models", "arch.name")
    require(model_class, name, "arch.name", FAMILY="recursive_reasoning", DATA_MODE="embedding")
    loss_class = resolve(loss.pop("name", ""), "losses", "arch.loss.name")
    model_config, loss_config = build_config(model_class, hyper, "arch"), build_config(loss_class, loss, "arch.loss")
    return model_class, model_config, loss_class, loss_config


def create_model(config: PretrainConfig, shape: Any, runtime: Any) -> tuple[Any, Any]:
    """The model and loss head that `config.arch` names, on the device. Raises UsageError where they misfit the data."""
    from engine.building import build_module

    model_class, model_config, loss_class, loss_config = read_arch(config)
    make = partial(model_class, model_config, shape, auto_dtype=runtime.dtype, attention=runtime.attention)
    return build_module(make, runtime.device, model_config), loss_class(loss_config)


def create_evaluators(config: PretrainConfig) -> list[Any]:
    """What `config.evaluators` names. Raises UsageError like `read_arch`."""
    from engine.registry import build_config, resolve

    evaluators = []
    for number, entry in enumerate(config.evaluators):
        evaluator = resolve(entry.get("name"), "evaluators", f"evaluators[{number}].name")
        evaluators.append(evaluator(build_config(evaluator, entry, f"evaluators[{number}]")))
    return evaluators


def check(config: PretrainConfig) -> dict[str, Any]:
    """Everything that can be wrong before data are read: names and keys, then the path from command to model."""
    read_arch(config), create_evaluators(config)
    return preflight(config, "pretrain", Path(__file__).parent)


def build(config: PretrainConfig, runtime: Any) -> Any:
    """Data, model, loss and task of one run, with the plan that the trainer follows."""
    from dataset.catalog import ensure
    from dataset.format import load_splits
    from dataset.held_back import hold_back
    from dataset.sampler import EvalSampler, TrainSampler
    from dataset.writing import describe
    from engine.loop.schedule import warmup_cosine
    from engine.task import TrainingPlan
    from models.recursive_reasoning.act import PuzzleShape
    from tasks.recursive_reasoning.task import EpochPlan, RecursiveReasoningTask, param_groups

    folders = [ensure(path, build=not config.from_file) for path in config.data_paths]
    tests = [ensure(path, build=not config.from_file) for path in config.data_paths_test] or folders
    train = load_splits(folders, "train")
    epochs_per_iter, held_back = config.eval_interval or config.epochs, hold_back(train, config)
    sampler = TrainSampler(
        train, seed=config.seed, global_batch_size=config.global_batch_size, epochs_per_iter=epochs_per_iter,
        order=config.data_order, held_back=held_back.groups,
    )  # fmt: skip
    epochs = EpochPlan(sampler, iterations=config.epochs // epochs_per_iter)
    evaluated = epochs.evaluation_steps(config.min_eval_interval)
    meta = train[0].metadata
    shape = PuzzleShape(meta.seq_len, meta.vocab_size, sampler.num_puzzle_identifiers, meta.pad_id)
    model, loss_head = create_model(config, shape, runtime)

    held_out = partial(
        EvalSampler, load_splits(tests, "test", like=train),
        config.eval_batch_size or config.global_batch_size, seed=config.eval_seed,
    )  # fmt: skip
    task = RecursiveReasoningTask(
        model, loss_head, runtime=runtime, sampler=sampler, plan=epochs,
        global_rows=config.global_batch_size, batch_key="global_batch_size",
        eval_sampler=held_out(max_examples=config.eval_max_examples),
        final_sampler=held_out(max_examples=config.final_eval_max_examples),
        evaluators=create_evaluators(config), validation_sampler=held_back.sampler,
        groups=param_groups(
            model, lr=config.lr, weight_decay=config.weight_decay, betas=(config.beta1, config.beta2),
            embedding_lr=config.puzzle_emb_lr, embedding_weight_decay=config.puzzle_emb_weight_decay,
            freeze_weights=config.freeze_weights,
        ),
    )  # fmt: skip
    return TrainingPlan(
        task=task,
        total_steps=epochs.total_steps,
        schedule=partial(
            warmup_cosine, base=1.0, warmup=config.lr_warmup_steps, total=epochs.total_steps,
            min_ratio=config.lr_min_ratio,
        ),
        eval_steps=evaluated if config.eval_interval else (),
        final_eval=config.final_eval, final_like_others=task.final_like_others, covers=task.covers,
        checkpoint_every_eval=config.checkpoint_every_eval,
        primary_metric=f"{held_back.prefix}/exact_accuracy", metric_mode="max", splits=held_back.splits,
        batch_key="global_batch_size", batch_rows=config.global_batch_size,
        cards=[describe(folder) for folder in dict.fromkeys([*folders, *tests])],
    )  # fmt: skip


@hydra.main(config_path="config", config_name="cfg_pretrain", version_base=None)
def launch(hydra_config: DictConfig) -> Any:
    """Compose -> strict config -> run. In a sweep, start the job as a process and give its metric to the sweeper."""
    if job := run_child_if_multirun(hydra_config, __file__):
        return job.metric
    config = load_synced_config(hydra_config, rank=RANK, world_size=WORLD_SIZE, schema=SCHEMA, entry="pretrain")

    from engine.run.launch import run  # imports torch: only once the config is known to be good

    run(config, build, entry="pretrain", check=check, compare=compare_signatures)


if __name__ == "__main__":
    main(launch, schema=SCHEMA, entry="pretrain", aliases=ALIASES, sweep=sweep)
