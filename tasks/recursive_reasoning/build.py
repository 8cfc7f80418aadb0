"""Build a run of pretrain.py: data, model, loss, task, and the plan for the trainer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dataset.catalog import ensure
from dataset.format import PuzzleSplit, load_splits
from dataset.held_back import HeldBack, hold_back
from dataset.online import OnlineCopies
from dataset.sampler import EvalBudget, EvalSampler, TrainSampler
from dataset.writing import describe
from engine import building
from engine.errors import UsageError
from engine.loop.schedule import warmup_cosine
from engine.registry import create_evaluators
from engine.task import ParamGroup, Runtime, TrainingPlan
from evaluators.voting.tasks import leakage_of
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.model import RecursiveModel
from tasks.optimizers import check_optimizers
from tasks.recursive_reasoning.args import EpisodeConfig, PretrainConfig
from tasks.recursive_reasoning.epochs import EpochPlan
from tasks.recursive_reasoning.family import FAMILY
from tasks.recursive_reasoning.groups import param_groups
from tasks.recursive_reasoning.start import check_branch, initial_weights
from tasks.recursive_reasoning.task import RecursiveReasoningTask


def check(config: PretrainConfig) -> None:
    """Check the architecture, optimizers and evaluators of a config. Raises: UsageError."""
    FAMILY.read_arch(config)
    check_optimizers(config.optimizer, config.lr)
    create_evaluators(config.evaluators)


def create_model(config: PretrainConfig, shape: PuzzleShape, runtime: Runtime) -> tuple[Any, Any]:
    """(model, loss head) of `config.arch`, on the device. Raises: UsageError if they do not fit the data."""
    return building.create_model(FAMILY.read_arch(config), shape, runtime)


def build(
    config: PretrainConfig, runtime: Runtime, create_model: Callable[..., tuple[Any, Any]] = create_model
) -> TrainingPlan:
    """Build data, model, loss and task of a run; returns the plan for the trainer."""
    folders, tests = usable_folders(config)
    train = load_splits(folders, "train")
    check_branch(config, train)
    epochs_per_iter, held_back = config.eval_interval or config.epochs, hold_back(train, config)
    sampler = TrainSampler(
        train,
        seed=config.seed,
        global_batch_size=config.global_batch_size,
        epochs_per_iter=epochs_per_iter,
        order=config.data_order,
        held_back=held_back.groups,
    )
    epochs = EpochPlan(sampler, iterations=config.epochs // epochs_per_iter)
    evaluated = epochs.evaluation_steps(config.min_eval_interval)
    meta = train[0].metadata
    shape = PuzzleShape(meta.seq_len, meta.vocab_size, sampler.num_puzzle_identifiers, meta.pad_id)
    model, loss_head = create_model(config, shape, runtime)
    test = load_splits(tests, "test", like=train)
    if config.load_checkpoint:  # that run's training data was not compared with these test sets
        test = [replace(s, leakage="unchecked") if leakage_of([s]) == "clean" else s for s in test]
    task = RecursiveReasoningTask(
        model,
        loss_head,
        runtime=runtime,
        sampler=sampler,
        plan=epochs,
        validation_sampler=held_back.sampler,
        groups=groups_of(model, config),
        copies=OnlineCopies(train, test) if config.online_augmentation else None,
        **evaluation_of(config, EvalSampler, test),
    )
    start = initial_weights(config, model, train)
    return training_plan(config, task, epochs.total_steps, evaluated, held_back, [*folders, *tests], start=start)


def usable_folders(config: EpisodeConfig) -> tuple[list[Path], list[Path]]:
    """(training, test) data sets, built if missing where that is allowed. Raises: UsageError."""
    usable = partial(ensure, build=not config.from_file, offline=config.offline)
    folders = list(map(usable, config.data_paths))
    return folders, list(map(usable, config.data_paths_test)) or folders


def evaluation_of(
    config: EpisodeConfig, kind: Callable[..., EvalSampler], test: Sequence[PuzzleSplit]
) -> dict[str, Any]:
    """The task arguments for batches and evaluation; `kind` is the class of the samplers of the `test` splits."""
    held_out = partial(kind, test, config.eval_batch_size or config.global_batch_size, seed=config.eval_seed)
    return {
        "global_rows": config.global_batch_size,
        "batch_key": "global_batch_size",
        "eval_sampler": held_out(
            max_examples=config.eval_max_examples,
            budget=EvalBudget(config.eval_max_groups, config.eval_max_augmentations),
        ),
        "final_sampler": held_out(
            max_examples=config.final_eval_max_examples,
            budget=EvalBudget(config.final_eval_max_groups, config.final_eval_max_augmentations),
        ),
        "evaluators": create_evaluators(config.evaluators),
        "saves_carry": config.checkpoint_carry,
        "halting_metrics": config.halting_metrics,
    }


def training_plan(
    config: EpisodeConfig,
    task: RecursiveReasoningTask,
    total_steps: int,
    evaluated: Collection[int],
    held_back: HeldBack,
    folders: Sequence[Path],
    **more: Any,
) -> TrainingPlan:
    """The plan of a run of at most `total_steps` steps on the data in `folders`; `evaluated` are the steps that
    complete an eval interval, `more` further fields. Raises: UsageError if the test split is empty."""
    if not config.from_file and (config.final_eval or config.eval_interval):
        tested = config.final_eval or task.validation_sampler is None
        if tested and not task.final_sampler.num_examples:
            folders_of = ", ".join(dict.fromkeys(str(split.root) for split in task.final_sampler.splits))
            raise UsageError(
                f"{folders_of}: no examples in the test split: name others in data_paths_test, or final_eval=false and "
                "eval_interval=null"
            )
        _try_evaluators(config, task)
    steps = task.total_steps = min(total_steps, config.total_steps or total_steps)
    splits, final = dict(more.pop("splits", held_back.splits)), task.final_sampler
    if final.num_examples < final.total:
        splits["eval"] = splits["eval"].replace("of the test split", f"of {final.covers} of the test split", 1)
    return TrainingPlan(
        task=task,
        total_steps=steps,
        schedule=partial(
            warmup_cosine,
            base=1.0,
            warmup=config.lr_warmup_steps,
            total=steps,
            min_ratio=config.lr_min_ratio,
        ),
        eval_steps=evaluated if config.eval_interval else (),
        final_eval=config.final_eval,
        final_like_others=task.final_like_others,
        covers=task.covers,
        checkpoint_every_eval=config.checkpoint_every_eval,
        primary_metric=f"{held_back.prefix}/exact_accuracy",
        metric_mode="max",
        batch_key="global_batch_size",
        batch_rows=config.global_batch_size,
        report=task.report,
        cards=[describe(folder) for folder in dict.fromkeys(folders)],
        splits=splits,
        **more,
    )


def _try_evaluators(config: EpisodeConfig, task: RecursiveReasoningTask) -> None:
    """Start copies of the task's evaluators on the test data: what they cannot read is refused now, not after hours of
    training. Raises: UsageError.
    """
    for evaluator in create_evaluators(config.evaluators):
        if (attach := getattr(evaluator, "attach", None)) is not None:
            attach(task.model, task.loss_head)
        evaluator.begin(task.final_sampler.splits)


def groups_of(model: RecursiveModel, config: PretrainConfig) -> list[ParamGroup]:
    """The optimizer groups of a model for a config."""
    return param_groups(
        model,
        lr=config.lr,
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
        embedding_lr=config.puzzle_emb_lr,
        embedding_weight_decay=config.puzzle_emb_weight_decay,
        freeze_weights=config.freeze_weights,
        optimizer=config.optimizer,
    )
