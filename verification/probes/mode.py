"""The guide's step 5, observed: which method forward runs (MOD420), of which mode it is (MOD421), how deep it thinks
(MOD422), who is trained (MOD460).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from engine.cli.keys import keys_of
from verification.link import mode_of_name
from verification.probes.episodes import CLOSE, _exploring, evaluations
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
)
from verification.probes.launch import watched
from verification.probes.registry import Note, observes

FEW = 3
"""A mode can be told from its depth where an episode has at least so many steps."""


# --- which method runs ------------------------------------------------------------------------------------------------


@dataclass
class Ran:
    """One forward pass: the `_forward_*` methods that it entered, and how often each module was called."""

    methods: list[str]
    depth: int
    """Calls of the module that was called most often."""
    output: Any


def ran(model: nn.Module, batch: Any, *carry: Any) -> Ran:
    """One forward pass without gradients, watched."""
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
    return Ran(methods, max(calls.values(), default=0), output)


@observes("MOD420", act=True, after=("SCR120",), passed="")
def branches(tiny: Tiny) -> Iterator[str | Note]:
    """Training and evaluation, without and with a carry; then a training step after an evaluation."""
    task = tiny.build().task
    model, batch, about = task.module, first_batch(task), getattr(tiny.model_class, "forward", None)
    carry = ran(model.train(), batch).output.carry
    train = [ran(model.train(), batch, *more).methods for more in ((), (carry,))]
    evaluate = ran(model.eval(), batch).methods
    with contextlib.suppress(TypeError):  # a forward that takes none
        evaluate += [name for name in ran(model.eval(), batch, carry).methods if name not in evaluate]
    name = tiny.model_class.__name__
    wrong = [", ".join(names) or "no _forward_* method" for names in train if not _begin(names, "_forward_train")]
    if wrong:
        yield Note("FAIL", f"{name}.forward runs {wrong[0]} in training: expected _forward_train_*", about)
    if not _begin(evaluate, "_forward_eval"):
        names_ = ", ".join(evaluate) or "no _forward_* method"
        yield Note("FAIL", f"{name}.forward runs {names_} in evaluation: expected _forward_eval*", about)
    if wrong or not _begin(evaluate, "_forward_eval"):
        return
    tiny.kept["train_forward"] = train[0][0]
    if not trains_again(tiny):
        owner = type(task)
        text = f"{owner.__name__} leaves the model in evaluation mode: the steps after an evaluation train with it"
        yield Note("FAIL", text, owner.evaluate)
    yield Note(
        "PASS", f"training {train[0][0]}, evaluation {evaluate[0]}", getattr(tiny.model_class, train[0][0], None)
    )


def _begin(names: list[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


@observes(
    "MOD420",
    act=False,
    after=("SCR120",),
    passed="the model is in training mode in every step, also after an evaluation",
)
def trains(tiny: Tiny) -> Iterator[str | Note]:
    """Of models that branch on nothing else."""
    if not trains_again(tiny):
        owner = tiny.task_class
        yield Note(
            "FAIL", f"{owner.__name__} calls eval() and not train() again: it goes on without dropout", owner.evaluate
        )


def trains_again(tiny: Tiny) -> bool:
    """Whether the model is in training mode in a step that follows an evaluation."""
    task = tiny.build().task
    step(task, 1)
    evaluate(task)
    recorder = Recorder(task.module)
    step(task, 2)
    return all(call.training for call in recorder.calls)


# --- which mode it is -------------------------------------------------------------------------------------------------


def mode_of_body(tiny: Tiny) -> str:
    """fixed or dynamic by what one training step does: a whole episode, or one step of it."""
    task = _exploring(tiny, 0)
    with contextlib.suppress(Unobservable):  # a model without a halting head
        set_halting(task.module, willing=False)
    batch, last = first_batch(task), tiny.max_steps
    train, whole = ran(task.module.train(), batch), ran(task.module.eval(), batch)
    if last > 1 and bool((train.output.carry.steps > 1).any()):
        return "fixed"
    complete = bool((whole.output.carry.steps == last).all())
    return "fixed" if last >= FEW and complete and train.depth >= whole.depth else "dynamic"


@observes("MOD421", act=True, after=("SCR120", "MOD420"), passed="")
def mode(tiny: Tiny) -> Iterator[str | Note]:
    """What the class declares, what the method is called, what it does."""
    train = tiny.kept["train_forward"]
    declared, named = getattr(tiny.model_class, "ACT_MODE", None), mode_of_name(train)
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


# --- how deep it thinks -----------------------------------------------------------------------------------------------


@observes(
    "MOD422",
    act=True,
    after=("SCR120", "MOD420", "MOD421", "SCR130", "MOD440"),
    passed="as many steps and cycles as the arch block says",
)
def depth(tiny: Tiny) -> Iterator[str]:
    """An example that never wants to halt, for all its steps; and every number of cycles beside one less."""
    yield from idle_cycles(tiny)
    last = tiny.full_arch.get("halt_max_steps")
    if not isinstance(last, int):
        return
    task = tiny.build(halt_max_steps=last).task
    model, batch, state = task.module, first_batch(task), None
    set_halting(model, willing=False)
    with torch.no_grad():
        for number in range(1, last + 1):
            output = model(batch, state)
            state = output.carry
            if bool(state.halted.any()) != (number == last):
                yield f"rows that never want to halt do so after {number} of arch.halt_max_steps={last} steps"
                return
        answer = model.eval()(batch).logits
    sampled = getattr(tiny.model_class, "ENCODER_POLICY", "none") not in ("none", None)
    if not sampled and not torch.allclose(output.logits, answer, atol=CLOSE) and not any(evaluations(tiny)):  # MOD450
        yield f"{last} training steps do not answer what an evaluation of arch.halt_max_steps={last} steps answers"


def idle_cycles(tiny: Tiny) -> Iterator[str]:
    """Numbers of cycles that answer what one less answers."""
    unused = {name for name, key in keys_of(getattr(tiny.model_class, "Config", None)).items() if key.unused}
    for key, count in tiny.full_arch.items():
        counts = key.endswith("_cycles") and key not in unused and isinstance(count, int) and count > 1
        if counts and torch.equal(_answer(tiny, key, count), _answer(tiny, key, count - 1)):
            yield f"arch.{key}={count} answers what {count - 1} answers: not all of them are run"


def _answer(tiny: Tiny, key: str, value: int) -> Tensor:
    changed: dict[str, Any] = {key: value}
    task = tiny.build(**changed).task
    with torch.no_grad():
        logits: Tensor = task.module.eval()(first_batch(task)).logits
    return logits


# --- evaluation and groups --------------------------------------------------------------------------------------------


@observes("CFG240", about="evaluate", after=("SCR120",), passed="an evaluation measures something")
def measured(tiny: Tiny) -> Iterator[str | Note]:
    """What the evaluators of the config and the task's own evaluation return."""
    if not evaluate(tiny.build().task):
        yield f"no evaluator is named, and {tiny.task_class.__name__} measures nothing itself: the run has no result"


@observes(
    "MOD460",
    about="param_groups",
    after=("SCR120",),
    passed="every parameter stands in one optimizer group, as the model groups them",
)
def groups(tiny: Tiny) -> Iterator[str | Note]:
    """Parameters of the model against the groups of the task."""
    task = tiny.build().task
    model, made, name = task.module, task.param_groups(), f"{type(task).__name__}.param_groups"
    for text in grouped(tiny, model, made):
        yield f"{name}: {text}"
    if callable(getattr(model, "param_groups", None)):
        yield from _mixed(model, [group for group in made if group.table is None], name)


def grouped(tiny: Tiny, model: nn.Module, made: list[Any]) -> Iterator[str]:
    """What is wrong with which parameters and tables of `model` the groups hold."""
    names = {id(p): n for n, p in model.named_parameters()}
    dense = [group for group in made if group.table is None]
    holders = Counter(names.get(id(p), n) for group in dense for n, p in group.dense.items())
    left_out = [n for n in names.values() if not holders[n] and not tiny.spec.may_be_frozen(n)]
    if left_out and not tiny.settings.get("freeze_weights"):
        yield f"{listed(left_out)} in no optimizer group: never trained"
    if twice := [n for n, count in holders.items() if count > 1]:
        yield f"{listed(twice)} in more than one optimizer group: updated twice per step"
    if foreign := [n for n in holders if n not in names.values()]:
        yield f"{listed(foreign)} in an optimizer group but not part of the model"
    held = {id(group.table) for group in made if group.table is not None}
    if lost := [n for n, table in tables(model).items() if id(table) not in held]:
        yield f"the sparse table {listed(lost)} in no optimizer group: its rows keep their first values"


def _mixed(model: Any, dense: list[Any], name: str) -> Iterator[str]:
    """Groups of the task that put together what the model keeps apart."""
    kind: dict[int, str] = {}
    for label, members in model.param_groups().items():
        kind |= {id(p): label for p in (members.values() if isinstance(members, dict) else members)}
    for group in dense:
        kinds = sorted({kind[id(p)] for p in group.dense.values() if id(p) in kind})
        if len(kinds) > 1:
            yield f"{name}: group {group.name} holds the model's {listed(kinds)} together: one setting for all"
