"""Build a run of pretrain_etrm.py: data with demonstrations, model, loss, task, and the plan for the trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dataset.fewshot import FewShotEvalSampler, FewShotSampler, few_shot
from dataset.format import PuzzleSplit, check_agreement, load_splits
from dataset.held_back import HeldBack, hold_back
from engine import building
from engine.io import print_rank0
from engine.registry import create_evaluators
from engine.task import ParamGroup, Runtime, TrainingPlan
from evaluators.adaptation.search import SearchConfig
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.etrm import TRMWithEncoder
from tasks.etrm.args import ETRMConfig
from tasks.etrm.decoder import find_decoder
from tasks.etrm.family import FAMILY
from tasks.etrm.task import ETRMTask, SlotPlan
from tasks.recursive_reasoning.build import evaluation_of, training_plan, usable_folders
from tasks.recursive_reasoning.groups import param_groups


def check(config: ETRMConfig) -> None:
    """Check the architecture and the evaluators of a config. Raises: UsageError."""
    FAMILY.read_arch(config)
    create_evaluators(config.evaluators)


def create_model(config: ETRMConfig, shape: PuzzleShape, runtime: Runtime) -> tuple[Any, Any]:
    """(model, loss head) of `config.arch`, on the device. Raises: UsageError if they do not fit the data."""
    return building.create_model(FAMILY.read_arch(config), shape, runtime)


def build(
    config: ETRMConfig, runtime: Runtime, create_model: Callable[..., tuple[Any, Any]] = create_model
) -> TrainingPlan:
    """Build data, model, loss and task of a run; returns the plan for the trainer."""
    folders, tests = usable_folders(config)
    train, test = few_shot(load_splits(folders, "train")), few_shot(load_splits(tests, "test"))
    for split in test:
        check_agreement(train, split.metadata, split.root / split.split / "dataset.json")
    # A folder's leakage report only covers its own training tasks.
    test = [split if split.root in folders else replace(split, leakage="unchecked") for split in test]
    held_back = hold_back(train, config)
    sampler = FewShotSampler(
        train,
        seed=config.seed,
        global_batch_size=config.global_batch_size,
        showing=config.showing(),
        held_back=_not_trained(train, held_back, config.max_train_groups),
    )
    plan = SlotPlan(sampler.examples_per_epoch, config)
    meta = train[0].metadata
    # No tensor of these models depends on the number of puzzles.
    shape = PuzzleShape(meta.seq_len, meta.vocab_size, sampler.num_puzzle_identifiers, meta.pad_id)
    model, loss_head = create_model(config, shape, runtime)
    decoder = find_decoder(config, model, test) if config.load_pretrained_decoder else None
    if decoder is not None:
        test = [replace(split, leakage=decoder.leakage or split.leakage) for split in test]
    search = None
    if config.train_search_steps:
        search = SearchConfig(budgets=[config.train_search_steps], lr=config.train_search_step_size)
    task = ETRMTask(
        model,
        loss_head,
        runtime=runtime,
        sampler=sampler,
        plan=plan,
        validation_sampler=held_back.sampler,
        groups=groups_of(model, config),
        frozen={"encoder": config.freeze_encoder_steps, "trunk": config.freeze_decoder_steps},
        diagnostics_interval=config.diagnostics_interval,
        search=search,
        **evaluation_of(config, FewShotEvalSampler, test),
    )
    if not config.from_file:
        print_rank0(f"encoder     {model.encoder.describe()}; {model.ACT_MODE}, {model.ENCODER_POLICY}")
    return training_plan(
        config,
        task,
        plan.total_steps,
        plan.evaluation_steps(config.min_eval_interval),
        held_back,
        [*folders, *tests],
        # a loaded decoder may have seen the tests
        splits={name: f"{text}; {decoder.provenance}" if decoder else text for name, text in held_back.splits.items()},
        start=None if decoder is None else decoder.load,
    )


def _not_trained(train: Sequence[PuzzleSplit], held_back: HeldBack, most: int | None) -> list[np.ndarray] | None:
    """The groups of each split that are not trained on: held-out ones, and others beyond the first `most`."""
    if most is None:
        return held_back.groups
    out, left = [], most
    for number, split in enumerate(train):
        held = np.empty(0, dtype=np.int64) if held_back.groups is None else held_back.groups[number]
        free = np.setdiff1d(np.arange(split.num_groups), held)
        out.append(np.union1d(held, free[left:]))
        left = max(0, left - len(free))
    return out


def groups_of(model: TRMWithEncoder, config: ETRMConfig) -> list[ParamGroup]:
    """The optimizer groups: one for the encoder, one for everything else."""
    return param_groups(
        model,
        lr=config.lr,
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
        scales={"encoder": config.encoder_lr_scale},
    )
