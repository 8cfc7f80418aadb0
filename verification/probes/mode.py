"""Probes of the guide's step 5: the method that forward runs (MOD420), its mode (MOD421), its depth (MOD422), and the
parameters that are trained (MOD460).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from engine.cli.keys import keys_of
from verification.link import mode_of_name
from verification.probes.episodes import CLOSE, evaluations, exploring, samples
from verification.probes.instance import (
    Recorder,
    Tiny,
    Unobservable,
    evaluate,
    first_batch,
    listed,
    set_halting,
    step,
    tables,
    unroll,
)
from verification.probes.launch import watched
from verification.probes.registry import Note, probe

FEW = 3
"""Least steps of an episode with which a mode can be recognised by its depth."""


# --- which method runs ------------------------------------------------------------------------------------------------


def ran(model: nn.Module, batch: Any, *carry: Any) -> tuple[list[str], int, Any]:
    """One forward pass without gradients: (`_forward_*` methods that ran, calls of the busiest module, output)."""
    methods: list[str] = []

    def watch(frame: FrameType, code: CodeType) -> None:
        if code.co_name.startswith("_forward_") and code.co_name not in methods:
            methods.append(code.co_name)

    calls: Counter[int] = Counter()
    hook = register_module_forward_pre_hook(lambda module, _: calls.update([id(module)]))
    try:
        with torch.no_grad(), watched(watch):
            output = model(batch, *carry)
    finally:
        hook.remove()
    return methods, max(calls.values(), default=0), output


@probe("MOD420", "SCR120", act=True)
def branches(tiny: Tiny) -> Iterator[str | Note]:
    """Training and evaluation without and with a carry, then a training step after an evaluation."""
    task = tiny.build().task
    model, batch, about = task.module, first_batch(task), getattr(tiny.model_class, "forward", None)
    first, _, output = ran(model.train(), batch)
    train, evaluation = [first, ran(model.train(), batch, output.carry)[0]], ran(model.eval(), batch)[0]
    with contextlib.suppress(TypeError):  # a forward without a carry
        evaluation = list(dict.fromkeys([*evaluation, *ran(model.eval(), batch, output.carry)[0]]))
    right = True
    for what, expected, methods in (
        ("training", "_forward_train_*", next((one for one in train if not _begin(one, "_forward_train")), train[0])),
        ("evaluation", "_forward_eval*", evaluation),
    ):
        if not _begin(methods, expected.rstrip("_*")):
            right, names = False, ", ".join(methods) or "no _forward_* method"
            text = f"{tiny.model_class.__name__}.forward runs {names} in {what}: expected {expected}"
            yield Note("FAIL", text, about)
    if right:
        tiny.cache["train_forward"] = first[0]
        yield from trains(tiny)
        text = f"training {first[0]}, evaluation {evaluation[0]}"
        yield Note("PASS", text, getattr(tiny.model_class, first[0], None))


def _begin(names: list[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


@probe("MOD420", "SCR120", act=False, passed="the model is in training mode in every step, also after an evaluation")
def trains(tiny: Tiny) -> Iterator[Note]:
    """The model is in training mode in a step that follows an evaluation."""
    task = tiny.build().task
    step(task, 1)
    evaluate(task)
    recorder = Recorder(task.module)
    step(task, 2)
    if not all(call.training for call in recorder.calls):
        text = f"{type(task).__name__} leaves the model in evaluation mode: the steps after an evaluation train with it"
        yield Note("FAIL", text, type(task).evaluate)


# --- its mode ---------------------------------------------------------------------------------------------------------


def mode_of_body(tiny: Tiny) -> str:
    """The mode by what a training step computes: fixed for a whole episode, dynamic for one step of it."""
    task = exploring(tiny, 0)
    with contextlib.suppress(Unobservable):  # a model without a halting head
        set_halting(task.module, halt=False)
    batch, last = first_batch(task), tiny.max_steps
    (_, depth, train), (_, whole, answer) = ran(task.module.train(), batch), ran(task.module.eval(), batch)
    if last > 1 and bool((train.carry.steps > 1).any()):
        return "fixed"
    return "fixed" if last >= FEW and bool((answer.carry.steps == last).all()) and depth >= whole else "dynamic"


@probe("MOD421", "MOD420", act=True)
def mode(tiny: Tiny) -> Iterator[Note]:
    """The declaration of the class, the name of the method and its behaviour agree."""
    train = tiny.cache["train_forward"]
    declared, named = tiny.act_mode, mode_of_name(train)
    done = mode_of_body(tiny)
    about = getattr(tiny.model_class, train, None)
    text = f"{tiny.model_class.__name__}: ACT_MODE={declared}, {train} is named {named or 'after no mode'}, "
    text += f"one training step is that of a {done} model"
    if declared not in ("dynamic", "fixed"):
        yield Note("FAIL", f"{text}: ACT_MODE must be dynamic or fixed", tiny.model_class)
    elif len({declared, named or declared, done}) > 1:
        yield Note("FAIL", text, about)
    else:
        yield Note("PASS" if named else "WARN", text, about)


# --- its depth --------------------------------------------------------------------------------------------------------


@probe("MOD422", "MOD440", act=True)
def depth(tiny: Tiny) -> Iterator[str]:
    """Rows that never halt early take all steps; every number of cycles differs from one less."""
    yield from idle_cycles(tiny)
    last = tiny.full_arch.get("halt_max_steps")
    if not isinstance(last, int):
        return
    task = tiny.build(halt_max_steps=last).task
    model, batch = task.module, first_batch(task)
    set_halting(model, halt=False)
    for number, output in enumerate(unroll(model, batch, last), 1):
        if bool(output.carry.halted.any()) != (number == last):
            yield f"rows that never want to halt do so after {number} of arch.halt_max_steps={last} steps"
            return
    (answer,) = unroll(model.eval(), batch, 1)
    same = samples(tiny) or torch.allclose(output.logits, answer.logits, atol=CLOSE)
    if not same and not any(evaluations(tiny)):  # else MOD450 reports it
        yield f"{last} training steps do not answer what an evaluation of arch.halt_max_steps={last} steps answers"


def idle_cycles(tiny: Tiny) -> Iterator[str]:
    """Numbers of cycles whose answer is that of one less."""

    def answer(key: str, value: int) -> Tensor:
        changed: dict[str, Any] = {key: value}
        task = tiny.build(**changed).task
        with torch.no_grad():
            logits: Tensor = task.module.eval()(first_batch(task)).logits
        return logits

    unused = {name for name, key in keys_of(getattr(tiny.model_class, "Config", None)).items() if key.unused}
    for key, count in tiny.full_arch.items():
        counts = key.endswith("_cycles") and key not in unused and isinstance(count, int) and count > 1
        if counts and torch.equal(answer(key, count), answer(key, count - 1)):
            yield f"arch.{key}={count} answers what {count - 1} answers: not all of them are run"


# --- evaluation and groups --------------------------------------------------------------------------------------------


@probe("CFG240", "SCR120", about="evaluate")
def measured(tiny: Tiny) -> Iterator[str]:
    """The evaluators of the config or the task's own evaluation return something."""
    if not evaluate(tiny.build().task):
        yield f"no evaluator is named, and {tiny.task_class.__name__} measures nothing itself: the run has no result"


@probe("MOD460", "SCR120", about="param_groups")
def groups(tiny: Tiny) -> Iterator[str]:
    """The parameter groups of the task have all parameters of the model, each once."""
    task = tiny.build().task
    model, param_groups, name = task.module, task.param_groups(), f"{type(task).__name__}.param_groups"
    for text in grouped(tiny, model, param_groups):
        yield f"{name}: {text}"
    kind: dict[int, str] = {}
    own = model.param_groups().items() if callable(getattr(model, "param_groups", None)) else ()
    for label, members in own:
        kind |= {id(p): label for p in (members.values() if isinstance(members, dict) else members)}
    for group in (group for group in param_groups if group.table is None):
        kinds = sorted({kind[id(p)] for p in group.dense.values() if id(p) in kind})
        if len(kinds) > 1:
            yield f"{name}: group {group.name} holds the model's {listed(kinds)} together: one setting for all"


def grouped(tiny: Tiny, model: nn.Module, param_groups: list[Any]) -> Iterator[str]:
    """Faults in the assignment of parameters and tables of `model` to groups."""
    names = {id(p): n for n, p in model.named_parameters()}
    dense = [group for group in param_groups if group.table is None]
    holders = Counter(names.get(id(p), n) for group in dense for n, p in group.dense.items())
    left_out = [n for n in names.values() if not holders[n] and not tiny.spec.may_be_frozen(n)]
    if left_out and not tiny.settings.get("freeze_weights"):
        yield f"{listed(left_out)} in no optimizer group: never trained"
    if twice := [n for n, count in holders.items() if count > 1]:
        yield f"{listed(twice)} in more than one optimizer group: updated twice per step"
    if foreign := [n for n in holders if n not in names.values()]:
        yield f"{listed(foreign)} in an optimizer group but not part of the model"
    held = {id(group.table) for group in param_groups if group.table is not None}
    if lost := [n for n, table in tables(model).items() if id(table) not in held]:
        yield f"the sparse table {listed(lost)} in no optimizer group: its rows keep their first values"
