"""Probes of a short training run: gradients and optimizer groups (DYN703), rows of the embedding (DYN718)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from verification.probes.instance import Recorder, Tiny, fit, listed, tables
from verification.probes.mode import grouped
from verification.probes.registry import Note, probe


@dataclass
class TrainingRun:
    """Observations of a few optimizer steps of engine/loop/trainer.py; lists have an entry per step."""

    model: nn.Module
    recorder: Recorder
    groups: list[Any]
    gradients: dict[str, float] = field(default_factory=dict)
    """Parameter -> largest absolute gradient."""
    changed: dict[str, bool] = field(default_factory=dict)
    """Parameter -> whether any of its elements changed."""
    rows: list[tuple[set[int], set[int]]] = field(default_factory=list)
    """(rows of the sparse table that the step changed, identifiers of its examples)."""


def training_run(tiny: Tiny) -> TrainingRun:
    """The training run, shared by all probes."""
    return tiny.once(_train)


def _train(tiny: Tiny) -> TrainingRun:
    plan = tiny.build(perturbed=False)
    model, before = plan.task.module, dict[str, Tensor]()
    run = TrainingRun(model, Recorder(model), plan.task.param_groups())

    def watch(name: str, gradient: Tensor) -> None:
        run.gradients[name] = max(run.gradients[name], float(gradient.abs().max()))

    for name, param in model.named_parameters():
        before[name], run.gradients[name] = param.detach().clone(), 0.0
        if param.requires_grad:
            param.register_hook(partial(watch, name))
    table = next(iter(tables(model).values()), None)
    states: list[Tensor] = []
    if table is not None:
        torch.nn.init.normal_(table.weights, generator=torch.Generator().manual_seed(1))
        states.append(table.weights.clone())

    def after_step() -> None:
        if table is not None:
            states.append(table.weights.clone())
            changed = (states[-1] != states[-2]).any(dim=1).nonzero().flatten().tolist()
            used = run.recorder.calls[-1].output.carry.data[tiny.spec.table_key].tolist()
            run.rows.append((set(changed), set(used)))

    fit(plan, tiny.config(), after_step)
    run.changed = {name: not torch.equal(param, before[name]) for name, param in model.named_parameters()}
    return run


@probe("DYN703", about="param_groups")
def gradients(tiny: Tiny) -> Iterator[str | Note]:
    """Some steps of the real trainer: every parameter is in one group, gets a gradient and changes."""
    run, steps = training_run(tiny), tiny.config().max_steps
    yield from grouped(tiny, run.model, run.groups)
    names = {id(param): name for name, param in run.model.named_parameters()}
    dense = [group for group in run.groups if group.table is None]
    rates = {names.get(id(param), name): group.lr for group in dense for name, param in group.dense.items()}
    held = [name for name in run.changed if name in rates]
    idle = [name for name in held if name in getattr(run.model, "idle_parameters", ())]
    if any(run.gradients[name] == 0.0 for name in idle):
        yield Note("INFO", f"{listed(idle)}: kept for equal sizes, no gradient is needed here")
    held = [name for name in held if name not in idle]
    if dry := [name for name in held if run.gradients[name] == 0.0]:
        yield f"{listed(dry)} got no gradient in {steps} steps"
    if still := [name for name in held if not run.changed[name] and rates[name] > 0]:
        yield f"{listed(still)} did not change in {steps} optimizer steps"
    if drifting := [name for name, changed in run.changed.items() if changed and name not in rates]:
        yield f"{listed(drifting)} changed though no optimizer group holds it"
    if not held and all(group.table is None for group in run.groups):
        yield "the optimizer groups are empty: nothing is trained"
    if zero := sorted({group.name for group in run.groups if group.lr == 0}):
        yield Note("WARN", f"the peak learning rate of group {listed(zero)} is 0: it is not trained")
    if tiny.settings.get("freeze_weights"):
        yield Note("PASS", "freeze_weights=true: the network stays as it is, only the puzzle embedding is trained")


@probe("DYN718", act=True)
def embedding_rows(tiny: Tiny) -> Iterator[str | Note]:
    """There is no encoder in embedding mode, and exactly the rows of a step's puzzles change in the table."""
    run = training_run(tiny)
    encoders = [name for name, _ in run.model.named_modules() if tiny.spec.is_encoder(name)]
    if encoders and getattr(tiny.model_class, "DATA_MODE", "") == "embedding":
        yield f"embedding mode has no encoder, found {listed(encoders)}"
    group = next((one for one in run.groups if one.table is not None), None)
    if not tables(run.model):
        yield Note("PASS", "no puzzle embedding (puzzle_emb_ndim=0)")
    elif group is None:
        yield "the puzzle embedding is in no optimizer group: its rows keep their first values"
    elif group.lr == 0:
        yield Note("WARN", "the puzzle embedding has learning rate 0: its rows never change")
    else:
        for number, (changed, used) in enumerate(run.rows, 1):
            if extra := changed - used:
                yield f"step {number} changed embedding rows {sorted(extra)[:6]} of puzzles that it did not work on"
            if missing := used - changed:
                yield f"step {number} left embedding rows {sorted(missing)[:6]} of its own puzzles unchanged"
