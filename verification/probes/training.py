"""Probes of a short training run: gradients and optimizer groups (DYN703), embedding rows and forward mode (DYN718)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from verification.link import mode_of_name
from verification.probes.instance import Recorder, Tiny, Unobservable, fit, listed, tables
from verification.probes.mode import grouped
from verification.probes.registry import Note, observes


@dataclass
class TrainingRun:
    """What three optimizer steps of engine/loop/trainer.py left behind; one entry per step in the lists."""

    model: nn.Module
    recorder: Recorder
    groups: list[Any]
    steps: int
    """Optimizer steps taken."""
    gradients: dict[str, float]
    """Parameter -> largest absolute gradient seen."""
    changed: dict[str, bool] = field(default_factory=dict)
    """Parameter -> whether any of its numbers moved."""
    table_rows: list[set[int]] = field(default_factory=list)
    """Rows of the sparse table that the step changed."""
    used_rows: list[set[int]] = field(default_factory=list)
    """Identifiers of the examples that the step worked on."""


def training_run(tiny: Tiny) -> TrainingRun:
    """Made once for all probes."""
    return tiny.once(_train)


def _train(tiny: Tiny) -> TrainingRun:
    plan, config = tiny.build(stirred=False), tiny.config()
    model, before = plan.task.module, dict[str, Tensor]()
    run = TrainingRun(model, Recorder(model), plan.task.param_groups(), config.max_steps, {})

    def watch(name: str, gradient: Tensor) -> None:
        run.gradients[name] = max(run.gradients[name], float(gradient.abs().max()))

    for name, param in model.named_parameters():
        before[name], run.gradients[name] = param.detach().clone(), 0.0
        if param.requires_grad:
            param.register_hook(partial(watch, name))
    table = next(iter(tables(model).values()), None)
    if table is not None:
        torch.nn.init.normal_(table.weights, generator=torch.Generator().manual_seed(1))
    rows = [] if table is None else [table.weights.clone()]

    def after_step() -> None:
        if table is not None:
            rows.append(table.weights.clone())
            run.table_rows.append(set((rows[-1] != rows[-2]).any(dim=1).nonzero().flatten().tolist()))
            run.used_rows.append(set(run.recorder.calls[-1].output.carry.data[tiny.spec.table_key].tolist()))

    fit(plan, config, after_step)
    run.changed = {name: not torch.equal(param, before[name]) for name, param in model.named_parameters()}
    return run


@observes(
    "DYN703",
    about="param_groups",
    passed="every parameter gets a gradient, stands in one optimizer group, and moves",
    fix="list every parameter in exactly one ParamGroup, and let the loss depend on it inside the gradient window",
)
def gradients(tiny: Tiny) -> Iterator[str | Note]:
    """Three steps of the real trainer: who is in which group, who got a gradient, who moved."""
    run = training_run(tiny)
    yield from grouped(tiny, run.model, run.groups)
    names = {id(param): name for name, param in run.model.named_parameters()}
    dense = [group for group in run.groups if group.table is None]
    rates = {names.get(id(param), name): group.lr for group in dense for name, param in group.dense.items()}
    held = [name for name in run.changed if name in rates]
    idle = [name for name in held if name in getattr(run.model, "idle_parameters", ())]
    if idle and any(run.gradients[name] == 0.0 for name in idle):
        yield Note("INFO", f"{listed(idle)}: kept for equal sizes, no gradient is needed here")
    held = [name for name in held if name not in idle]
    if dry := [name for name in held if run.gradients[name] == 0.0]:
        yield f"{listed(dry)} got no gradient in {run.steps} steps"
    if still := [name for name in held if not run.changed[name] and rates[name] > 0]:
        yield f"{listed(still)} did not change in {run.steps} optimizer steps"
    if drifting := [name for name, moved in run.changed.items() if moved and name not in rates]:
        yield f"{listed(drifting)} changed though no optimizer group holds it"
    if not held and all(group.table is None for group in run.groups):
        yield "the optimizer groups are empty: nothing is trained"
    if zero := sorted({group.name for group in run.groups if group.lr == 0}):
        yield Note("WARN", f"the peak learning rate of group {listed(zero)} is 0: it is not trained")
    if tiny.settings.get("freeze_weights"):
        yield Note("PASS", "freeze_weights=true: the network stays as it is, only the puzzle embedding is trained")


@observes(
    "DYN718",
    act=True,
    passed="",
    fix="look rows up by puzzle_identifiers of the row's own example, update the touched rows only, and let forward() "
    "branch on self.training to the _forward_train_<mode> that ACT_MODE declares",
)
def embedding_mode(tiny: Tiny) -> Iterator[str | Note]:
    """Which forward ran in training and in evaluation, whether an encoder is there, which table rows moved."""
    run = training_run(tiny)
    trained = sorted({name for name in run.recorder.names if name.startswith("_forward_train")})
    declared = getattr(tiny.model_class, "ACT_MODE", None)
    modes = {mode_of_name(name) for name in trained}
    if not trained:
        yield "training ran none of the model's _forward_train_<mode> methods"
    elif modes != {declared}:
        yield f"training ran {listed(trained)}, but the class declares ACT_MODE={declared!r}"
    calls = sum(call.training for call in run.recorder.calls)
    if calls != run.steps and declared == "dynamic":
        yield f"{calls} forward passes for {run.steps} steps: dynamic mode is one ACT step per optimizer step"
    if encoders := [name for name, _ in run.model.named_modules() if "encoder" in name.lower()]:
        yield f"embedding mode has no encoder, found {listed(encoders)}"
    ran = f"training ran {listed(trained)}"

    if not tables(run.model):
        yield Note("PASS", f"{ran} ({declared} halting); no puzzle embedding (puzzle_emb_ndim=0)")
        return
    group = next((g for g in run.groups if g.table is not None), None)
    if group is None:
        yield "the puzzle embedding stands in no optimizer group: its rows keep their first values"
        return
    if group.lr == 0:
        yield Note("WARN", f"{ran}; the puzzle embedding has learning rate 0: its rows never change")
        return
    for number, (moved, used) in enumerate(zip(run.table_rows, run.used_rows, strict=True), 1):
        if extra := moved - used:
            yield f"step {number} changed embedding rows {sorted(extra)[:6]} of puzzles that it did not work on"
        if missing := used - moved:
            yield f"step {number} left embedding rows {sorted(missing)[:6]} of its own puzzles unchanged"
    if not run.table_rows:
        raise Unobservable("no optimizer step ran")
    yield Note("PASS", f"{ran} ({declared} halting); exactly the embedding rows of the step's puzzles changed")
