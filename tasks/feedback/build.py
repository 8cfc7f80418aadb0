"""Build a run of the feedback scripts: data, base, model, loss, task, and the plan for the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dataset.text.documents import DocumentBatches, Documents, EvalDocuments
from dataset.text.meta import load_tokenizer, read_meta
from dataset.text.named import build_command, ensure_text, require_text
from dataset.text.vocabulary import vocabularies_of
from engine import building
from engine.errors import UsageError
from engine.io import print_rank0
from engine.loop.schedule import Decay, lr_factor
from engine.registry import create_evaluators
from engine.task import Runtime, TrainingPlan
from models.dtypes import compute_dtype
from models.feedback.adapter_config import AdapterShape, HyperConfig, StaticLoraConfig
from models.feedback.apply import choose_form
from models.feedback.config import BaseConfig, TextShape
from tasks.feedback.answers import Answers
from tasks.feedback.args import EPOCHS, FeedbackConfig, FeedforwardConfig
from tasks.feedback.base import find_base, find_indomain, load_base, load_indomain, text_shape
from tasks.feedback.family import FEEDBACKWARD, FEEDFORWARD
from tasks.feedback.generation import Sampling, base_passes, predictor
from tasks.feedback.report import FeedbackReport
from tasks.feedback.task import FeedbackTask, param_groups

CONTEXT = 0.5
"""Share of a text that an adapter of an autoregressive base reads, to adapt how the rest is predicted."""


def check(config: FeedforwardConfig) -> None:
    """Check architecture and evaluators, that base and data exist or can be built, and that a checkpoint to resume is
    only named with --resume. Raises: UsageError."""
    _family(config).read_arch(config)
    create_evaluators(config.evaluators)
    require_text(config.dataset.folder, offline=config.offline)
    if isinstance(config, FeedbackConfig):
        find_base(config)
        find_indomain(config)
    named = {"checkpoint_dir": config.checkpoint_dir, "checkpoint_name": config.checkpoint_name}
    for key, value in named.items():
        if value is not None and config.resume != "true":
            raise UsageError(f"{key}={value} names what to resume: add --resume True")


def create_model(config: FeedforwardConfig, shape: TextShape | AdapterShape, runtime: Runtime) -> tuple[Any, Any]:
    """(model, loss head) of `config.arch`, on the device."""
    return building.create_model(_family(config).read_arch(config), shape, runtime)


def _family(config: FeedforwardConfig) -> Any:
    return FEEDBACKWARD if isinstance(config, FeedbackConfig) else FEEDFORWARD


def build(
    config: FeedforwardConfig, runtime: Runtime, create_model: Callable[..., tuple[Any, Any]] = create_model
) -> TrainingPlan:
    """Build data, base, model, loss and task of a run; returns the plan for the trainer."""
    entry, folder = config.dataset, Path(config.dataset.folder)
    card = open_data(config, folder)
    shape = text_shape(read_meta(folder).vocab_size)
    train, validation, test = _documents(config, folder, card)
    batches = DocumentBatches(train, seed=config.seed, batch_size=config.batch_size, pad=shape.pad_id)
    eval_documents = partial(
        EvalDocuments,
        seed=config.eval_seed,
        batch_size=config.batch_size,
        pad=shape.pad_id,
        limit=config.eval_max_examples,
    )
    base = indomain = None
    if isinstance(config, FeedbackConfig):
        vocabulary = vocabularies_of([folder])[0]
        base = load_base(config, runtime, vocabulary)
        indomain = load_indomain(config, runtime, vocabulary, base.model.config.objective)
        model, loss_head = create_model(config, AdapterShape(base=base.model.config, text=shape), runtime)
        _print_form(model.config, base.model.config, runtime, runtime.micro_rows(config.batch_size, "batch_size"))
    else:
        model, loss_head = create_model(config, shape, runtime)
        _check_block_size(config, model.config.block_size)
    frozen = base.model if base is not None else None
    objective = (frozen if frozen is not None else model).config.objective
    answers = None
    if config.evaluators or config.num_samples:
        answers = Answers(
            documents=test,
            tokenizer=load_tokenizer(folder),
            template=str(card.get("template", "")),
            shape=shape,
            sampling=sampling_of(config),
            causal=objective == "autoregressive",
        )
    task = FeedbackTask(
        model,
        loss_head,
        runtime=runtime,
        shape=shape,
        batches=batches,
        test=eval_documents(test),
        validation=eval_documents(validation) if validation is not None else None,
        base=base,
        indomain=indomain,
        context=None if objective == "masked_diffusion" else CONTEXT if base is not None else 0.0,
        groups=param_groups(
            model, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(config.beta1, config.beta2)
        ),
        eps=config.eps,
        stratified=config.stratified,
        eval_seed=config.eval_seed,
        levels=config.eval_levels,
        repeats=config.eval_samples,
        score_answers=_scorer(config, answers, model, frozen, runtime) if answers is not None else None,
    )
    epoch = batches.steps_per_epoch
    steps = config.total_steps or epoch * config.epochs.get(config.active_dataset, EPOCHS)
    warmup = int(config.warmup_ratio * steps) if config.decay_lr else 0
    schedule = partial(
        learning_rate_factor,
        decay=config.decay,
        warmup=warmup,
        horizon=steps,
        floor=config.min_lr / config.learning_rate if config.learning_rate else 0.0,
    )
    interval, ends = config.eval_interval or epoch, range(epoch, steps + 1, epoch)
    print_rank0(
        f"epochs      {steps / epoch:g} of {epoch} steps ({train.count:,} documents of {config.active_dataset} in "
        f"{len(train):,} pieces of at most {entry.block_size} tokens)"
    )
    return TrainingPlan(
        task=task,
        total_steps=steps,
        schedule=schedule,
        eval_steps=range(interval, steps + 1, interval),
        final_adds=True,
        primary_metric=f"{task.selects}/loss",
        metric_mode="min",
        covers=f"{task.held_out.covers} x {config.eval_samples}",
        splits=_splits(task, folder),
        batch_key="batch_size",
        batch_rows=config.batch_size,
        steps_per_epoch=epoch,
        step_counts={"tokens": int(config.batch_size * train.lengths.mean())},
        cards=[card],
        report=FeedbackReport(
            config, task, folder, answers, epoch=epoch, rate=lambda step: config.learning_rate * schedule(step)
        ),
        links={
            f"epoch_ckpt_{config.active_dataset}.pt": "latest",
            f"best_ckpt_{config.active_dataset}.pt": "best",
            **{f"epoch_ckpt_{config.active_dataset}_{end // epoch}.pt": f"step_{end}" for end in ends},
        },
        keep_every=config.save_epoch_interval and config.save_epoch_interval * epoch,
    )


def learning_rate_factor(step: int, *, decay: Decay, warmup: int, horizon: int, floor: float) -> float:
    """Share of the peak learning rate at `step` (1-based): step / warmup up to step `warmup`, then the decay.

    Example (cosine, warm-up 10 of 100 steps, floor 0.1): step 1 -> 0.1, 10 -> 1, 11 -> 1, 56 -> 0.55, 101 -> 0.1.
    """
    if step <= warmup:
        return step / warmup
    return lr_factor(step, decay, warmup=warmup, horizon=horizon, floor=floor)


def _documents(
    config: FeedforwardConfig, folder: Path, card: Mapping[str, Any]
) -> tuple[Documents, Documents | None, Documents]:
    """(training, validation, test) documents. Raises: UsageError if none can be held back for validation."""
    train, test = (Documents(folder, split, block_size=config.dataset.block_size) for split in ("train", "val"))
    test.name = card.get("split", {}).get("val", test.name)
    if config.select_on != "validation":
        return train, None, test
    if train.count < 2:
        raise UsageError(f"{folder} trains on a single document, so none can be held back: add select_on=test")
    return *train.hold_back(config.eval_seed), test


def _check_block_size(config: FeedforwardConfig, block_size: int) -> None:
    if config.dataset.block_size > block_size:
        raise UsageError(
            f"datasets.{config.active_dataset}.block_size={config.dataset.block_size} is longer than "
            f"arch.block_size={block_size}: raise the latter"
        )


def _scorer(
    config: FeedforwardConfig, answers: Answers, model: Any, base: Any, runtime: Runtime
) -> Callable[[], dict[str, float | None]] | None:
    """Scores answers with the run's evaluators; None if it has none. Raises: UsageError if no document fits."""
    if not config.evaluators:
        return None
    count, seed, test = config.answer_examples, config.eval_seed, answers.documents
    if not answers.gaps(1, seed):
        raise UsageError(
            f"evaluators: none of the {test.count:,} held-out documents of {config.dataset.folder} fits in "
            f"datasets.{config.active_dataset}.block_size={test.block_size}: raise it, or leave the evaluators out"
        )
    evaluators, predict = create_evaluators(config.evaluators), predictor(model, base)
    passes = partial(base_passes, model=model, base=base)
    return partial(answers.score, evaluators, predict, runtime, count=count, seed=seed, passes=passes)


def _print_form(config: Any, base: BaseConfig, runtime: Runtime, rows: int) -> None:
    """Print how the low-rank deltas are applied."""
    if isinstance(config, StaticLoraConfig):
        dtype = compute_dtype(base.forward_dtype, runtime.dtype)
        sides = base.sides(config.targets[0])
        form = choose_form(
            config.lora_apply, rows, base.block_size, config.lora_rank, sides, dtype, runtime.device.type
        )
        sum_of = ""
        if isinstance(config, HyperConfig) and config.accumulate and config.n_passes > 1:
            sum_of = f" ({config.lora_rank * config.n_passes} in pass {config.n_passes}, where they add up)"
        print_rank0(
            f"changes     rank {config.lora_rank}{sum_of} of {', '.join(config.targets)} in {base.n_layer} blocks, "
            f"in {form} form (lora_apply={config.lora_apply})"
        )
        narrow = min(min(base.sides(target)) for target in config.targets)
        if config.lora_rank > narrow:
            print_rank0(
                f"warning: lora_rank={config.lora_rank} is more than {narrow}, the width of the changed matrices: a "
                f"delta has rank {narrow} at most, and lora_rank={narrow} reaches every one"
            )


def _splits(task: FeedbackTask, folder: Path) -> dict[str, str]:
    selects = "best and early stopping use them"
    if task.validation is None:
        return {"eval": f"{task.test.covers} of {folder}: {selects}"}
    return {
        "val": f"{task.validation.covers}: {selects}",
        "eval": f"{task.test.covers} of {folder}, at the end: the figures to report",
    }


def sampling_of(config: FeedforwardConfig) -> Sampling:
    """The sampling settings of a run's evaluations."""
    return Sampling(
        steps=config.generation_steps,
        temperature=config.temperature,
        block_length=config.block_length,
        schedule=config.generation_schedule,
        feedback_every=config.feedback_every if isinstance(config, FeedbackConfig) else 1,
        seed=config.eval_seed,
    )


def open_data(config: FeedforwardConfig, folder: Path) -> dict[str, Any]:
    """Open the active data set and print it; returns its card. Raises: UsageError if it cannot be read or built."""
    if config.from_file and not folder.exists():
        raise UsageError(
            f"{folder} does not exist, and a run's config does not build data: "
            f"datasets.{config.active_dataset}.path says where it was moved to, else {build_command(folder)}"
        )
    card = ensure_text(folder, offline=config.offline)
    meta = read_meta(folder)
    split = card.get("split", {})
    splits = f"; trained on its split {split['train']}, tested on {split['val']}" if "train" in split else ""
    print_rank0(
        f"data        {folder}: {card['source']}; tokenizer {meta.tokenizer} with {meta.vocab_size} tokens{splits}"
    )
    return card
