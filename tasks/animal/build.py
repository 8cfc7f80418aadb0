"""Build a run of train_animal.py: base, adapters, loss, task, and the plan for the trainer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from engine import building
from engine.distributed import on_main
from engine.errors import UsageError
from engine.io import print_rank0
from engine.loop.schedule import lr_factor
from engine.task import ParamGroup, Runtime, TrainingPlan
from models.animal.adapter import Base, LoraLM
from models.animal.language_model import Sampling
from tasks.animal.args import AnimalConfig
from tasks.animal.base import fingerprint, load_base
from tasks.animal.blocks import RawTextProcessor
from tasks.animal.buffer import ReplayBuffer
from tasks.animal.clusters import best_kmeans, fit_on_main, kmeans
from tasks.animal.concepts import Concept, read_concepts
from tasks.animal.embedder import make_embedder
from tasks.animal.evaluation import READER, Evaluation
from tasks.animal.family import FAMILY
from tasks.animal.measure import Measurement
from tasks.animal.offline import checker_of, ensure_model
from tasks.animal.report import AnimalReport
from tasks.animal.sampler import Sampler
from tasks.animal.task import AnimalTask

PRIMARY = "eval/utility_10"


def check(config: AnimalConfig) -> None:
    """Check adapters, loss and concept of a config; prints the active loss terms. Raises: UsageError."""
    arch = FAMILY.read_arch(config)
    named = "; ".join(f"{concept.name}: {', '.join(concept.options)}" for concept in concepts_of(config))
    print_rank0(f"loss        {arch.loss_config.terms}; {named}")
    if config.early_stop_patience is not None and (config.eval_every_epochs is None or config.eval_samples < READER):
        raise UsageError(
            f"early_stop_patience={config.early_stop_patience} counts evaluations of {PRIMARY}, and this run makes "
            f"none before its end: set eval_every_epochs and eval_samples={READER} or more, or early_stop_patience=null"
        )
    if config.eval_samples < READER:
        print_rank0(
            f"warning: eval_samples={config.eval_samples} is too few for utility_10 and distinct_10, which stay empty: "
            f"set eval_samples={READER} or more"
        )
    if config.warmup_steps >= config.total_steps and config.lr_scheduler_type != "constant":
        print_rank0(
            f"warning: warmup_steps={config.warmup_steps} is as long as the run of {config.total_steps} steps: the "
            "learning rate rises to the end and never falls"
        )


def create_model(config: AnimalConfig, base: Base, runtime: Runtime) -> tuple[Any, Any]:
    """(`base` with the adapters of `config.arch`, loss head), on the device."""
    return building.create_model(FAMILY.read_arch(config), base, runtime)


def build(
    config: AnimalConfig, runtime: Runtime, create_model: Callable[..., tuple[Any, Any]] = create_model
) -> TrainingPlan:
    """Build base, adapters, loss and task of a run; returns the plan for the trainer."""
    folder = on_main(lambda: ensure_model(config.model_name_or_path))
    base = load_base(config.model_name_or_path, folder, runtime.dtype)
    reference = {"path": config.model_name_or_path, "sha256": fingerprint(base.model)}
    base.model.to(runtime.device)
    model, loss_head = create_model(config, base, runtime)
    sampler = make_sampler(config, model, runtime)
    embedder = make_embedder(config.embedder)
    options = list(sampler.processor.concept.options)
    chosen = config.cluster_selection == "silhouette"
    most = (chosen and config.max_n_clusters) or config.n_clusters
    fit = best_kmeans(config.n_clusters) if chosen else kmeans
    epoch, steps = config.num_steps_per_epoch, config.total_steps
    figures = Evaluation(
        embedder,
        options,
        n_clusters=most,
        seed=config.eval_seed,
        fit=fit,
        checker=checker_of(config.model_name_or_path),
        further={concept.name: list(concept.options) for concept in sampler.processor.further},
    )
    factor = partial(learning_rate_factor, config)
    replays = round(config.replay_fraction * config.batch_size) if loss_head.config.objective == "tb" else 0
    model.replayed = replays / config.batch_size
    task = AnimalTask(
        model,
        loss_head,
        runtime=runtime,
        sampler=sampler,
        buffer=ReplayBuffer(
            options,
            capacity=config.buffer_size,
            n_clusters=most,
            update_every=config.update_clusters_every,
            min_samples=config.min_samples_for_clustering,
            seed=config.seed,
            fit=fit_on_main(fit),
            pooled=config.pool_clusters,
        ),
        embedder=embedder,
        measurement=Measurement(
            sampler,
            figures,
            rows=config.eval_samples,
            seed=config.eval_seed,
            every=None if config.eval_every_epochs is None else config.eval_every_epochs * epoch,
        ),
        groups=param_groups(model, lr=config.learning_rate, weight_decay=config.weight_decay),
        batch_size=config.batch_size,
        prefill=config.num_samples,
        replays=replays,
        least_valid=config.min_valid_fraction,
        patience=config.max_skipped_steps,
        total_steps=steps,
        steps_per_epoch=epoch,
        rate=lambda step: config.learning_rate * factor(step),
        reference=reference,
    )
    return TrainingPlan(
        task=task,
        total_steps=steps,
        schedule=factor,
        eval_steps=range(0, steps + 1, epoch),
        metric_steps=[step for step in range(0, steps + 1, epoch) if task.measurement.due(step)],
        primary_metric=PRIMARY,
        final_adds=True,
        metric_mode="max",
        covers=f"{config.eval_samples} samples",
        splits={"eval": f"{config.eval_samples} samples of {config.prompt!r}"},
        batch_key="batch_size",
        batch_rows=config.batch_size,
        steps_per_epoch=epoch,
        step_counts=task.sampled,
        report=AnimalReport(config, task),
    )


def concepts_of(config: AnimalConfig) -> tuple[Concept, ...]:
    """The concepts that a sample must name. Raises: UsageError."""
    return read_concepts(config.concept_name, config.concept_file, config.concept_options, config.further_concepts)


def make_sampler(config: AnimalConfig, model: LoraLM, runtime: Runtime) -> Sampler:
    """The sampler of a run. Raises: UsageError if prompt and completion are longer than the base's context."""
    concept, *further = concepts_of(config)
    sampler = Sampler(
        model,
        RawTextProcessor(model.base.tokenizer, concept, config.stop_strings, further),
        prompt=config.prompt,
        max_new_tokens=config.max_new_tokens,
        sampling=Sampling(temperature=config.temperature, top_p=config.top_p, top_k=config.top_k),
        rows_at_once=runtime.micro_rows(config.batch_size, "batch_size"),
        runtime=runtime,
    )
    length = len(sampler.prompt)
    if model.positions is not None and length + config.max_new_tokens > model.positions:
        raise UsageError(
            f"max_new_tokens={config.max_new_tokens} behind a prompt of {length} tokens is more than the "
            f"{model.positions} that {config.model_name_or_path} reads: at most {max(model.positions - length, 0)}"
        )
    model.lengths = (length, config.max_new_tokens)
    return sampler


def param_groups(model: LoraLM, *, lr: float, weight_decay: float) -> list[ParamGroup]:
    """AdamW for the adapters."""
    return [
        ParamGroup(name=kind, optimizer="adamw", lr=lr, params=members, options={"weight_decay": weight_decay})
        for kind, members in model.param_groups().items()
    ]


def learning_rate_factor(config: AnimalConfig, step: int) -> float:
    """Share of the peak learning rate at `step` (1-based): (step - 1) / warmup_steps, then the decay.

    Example (1e-4 to 3e-5, 100 steps, cosine): step 1 -> 1, step 11 -> 0.98287; with 10 warm-up steps 0 and 1.
    """
    done = step - 1
    warmup = 0 if config.lr_scheduler_type == "constant" else config.warmup_steps
    if done < warmup:
        return done / warmup
    floor = config.final_learning_rate / config.learning_rate if config.learning_rate else 0.0
    return lr_factor(step, config.decay, warmup=warmup, horizon=config.total_steps, floor=floor)
