"""The guide's step 5, observed: which method forward runs (MOD420), of which mode it is (MOD421), how the input is
encoded (MOD430, MOD431) and whether gradients reach it (MOD432), what an evaluation does (MOD450), who is trained
(MOD460).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from verification.probes.context import encodes
from verification.probes.episodes import _exploring, episode, evaluations
from verification.probes.instance import (
    Recorder,
    Tiny,
    Unobservable,
    evaluate,
    finish_step,
    first_batch,
    set_halting,
    step,
    tables,
)
from verification.probes.launch import watched
from verification.probes.registry import Note, observes
from verification.rules.together import mode_of_name

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
    modes: list[bool] = []
    hook = task.module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    try:
        step(task, 2)
    finally:
        hook.remove()
    return all(modes)


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


# --- encoding and gradients -------------------------------------------------------------------------------------------


@dataclass
class Gradients:
    """Which parameters an episode trains, tables included."""

    first: set[str] = field(default_factory=set)
    """Those that a step of fresh rows gives a gradient."""
    later: set[str] = field(default_factory=set)
    """Those that the steps of continuing rows give one."""
    encoding: set[str] = field(default_factory=set)
    """Those of modules that are given whole numbers (tokens, identifiers), and of encoders."""
    error: str = ""
    stale: str = ""
    """Why a later step cannot be differentiated, although the first one can."""


def gradients(tiny: Tiny) -> Gradients:
    """The gradients of one whole episode, without an optimizer; observed once for all probes."""
    return tiny.once(_gradients)


def _gradients(tiny: Tiny) -> Gradients:
    seen, task = Gradients(), tiny.build().task
    names: dict[int, list[str]] = {}
    for name, module in task.module.named_modules():
        own = [f"{name}.{own}" for own, _ in module.named_parameters(recurse="encoder" in name.lower())]
        names[id(module)] = [*own, *([name] if hasattr(type(module), "take_pending") else [])]

    def given(module: nn.Module, arguments: Any) -> None:
        if encodes(" ".join(names.get(id(module), ())), arguments):
            seen.encoding.update(names.get(id(module), ()))

    hook = register_module_forward_pre_hook(given)
    try:
        for number, loss in _episode_losses(tiny, task):
            if not loss.requires_grad:
                seen.error = "the loss of a training step has no gradient: nothing is trained"
                return seen
            task.module.zero_grad(set_to_none=True)
            try:
                loss.backward()
            except RuntimeError as error:
                if number == 1:
                    raise
                seen.stale = " ".join(str(error).split())[:120]
                return seen
            moved = {n for n, p in task.module.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
            moved |= {name for name, table in tables(task.module).items() if _touched(table)}
            if number == 1:
                seen.first |= moved
            else:
                seen.later |= moved
    finally:
        hook.remove()
    return seen


def _episode_losses(tiny: Tiny, task: Any) -> Iterator[tuple[int, Tensor]]:
    """(step, loss) of one whole episode in which every row goes on to the end; two steps of models without episodes."""
    if tiny.spec.act:
        Recorder(task.module, _going_on)
    for number in range(1, max(tiny.max_steps if tiny.spec.act else 2, 2) + 1):
        for micro_batch in task.micro_batches(number):
            yield number, task.loss(micro_batch)[0]
        finish_step(task)


def _going_on(_: int, output: Any) -> Any:
    """The output of a model none of whose rows has halted."""
    return replace(output, carry=replace(output.carry, halted=torch.zeros_like(output.carry.halted)))


def _touched(table: Any) -> bool:
    return any(rows.grad is not None and bool((rows.grad != 0).any()) for _, rows in getattr(table, "pending", ()))


@observes("MOD432", after=("SCR120", "MOD420"), passed="what the loss depends on gets a gradient: nothing is detached")
def reaches(tiny: Tiny) -> Iterator[str | Note]:
    """Parameters that change the losses of an episode and get no gradient from them."""
    seen, model = gradients(tiny), tiny.build().task.module
    if seen.error:
        yield Note("FAIL", seen.error, tiny.task_class.loss)
        return
    idle = set(getattr(model, "idle_parameters", ()))
    names = [name for name, p in model.named_parameters() if p.requires_grad and name not in idle]
    names = [name for name in names if not tiny.spec.may_be_frozen(name)] + list(tables(model))
    dry = [name for name in names if name not in seen.first | seen.later]
    plain = _episode_sum(tiny, "") if dry else 0.0
    if detached := [name for name in dry if _episode_sum(tiny, name) != plain]:
        about = getattr(tiny.model_class, tiny.kept.get("train_forward") or "forward", None)
        yield Note("FAIL", f"{listed(detached)} got no gradient in a whole episode: detached or under no_grad", about)


def _episode_sum(tiny: Tiny, name: str) -> float:
    """The losses of an episode, with noise on parameter (or sparse table) `name`."""
    task = tiny.build().task
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        if name:
            values = {n: table.weights for n, table in tables(task.module).items()}
            values |= dict(task.module.named_parameters())
            values[name].add_(torch.randn(values[name].shape, generator=generator).to(values[name].dtype))
        torch.manual_seed(5)  # of dropout
        return sum(float(loss) for _, loss in _episode_losses(tiny, task))


@observes("MOD431", act=True, after=("SCR120", "MOD420", "MOD421", "MOD432", "MOD440"), passed="")
def encodes_each_step(tiny: Tiny) -> Iterator[str | Note]:
    """Whether steps of continuing rows train what the first step trained."""
    seen, declared = gradients(tiny), getattr(tiny.model_class, "ACT_MODE", None)
    missing = sorted((seen.first - seen.later) & seen.encoding)
    if seen.stale:
        text = f"a step of continuing rows works with what an earlier step has computed ({seen.stale})"
        yield Note("FAIL" if declared == "dynamic" else "PASS", text)
    elif missing:
        text = f"steps of continuing rows give no gradient to {listed(missing)}: what an earlier step encoded is kept"
        yield Note("FAIL" if declared == "dynamic" else "PASS", text)
    else:
        yield Note("PASS" if declared == "dynamic" else "WARN", f"encoded at every step; the model is {declared}")


@observes("MOD430", act=True, after=("SCR120", "MOD420", "MOD421", "MOD432"), passed="")
def encoding(tiny: Tiny) -> Iterator[str | Note]:
    """Whether answers depend on the input, and whether the encoder's policy is the declared one."""
    task = tiny.build().task
    model, batch = task.module.train(), first_batch(task)
    other = {name: value.roll(1, 0) if name == "inputs" else value for name, value in batch.items()}
    with torch.no_grad():
        plain, moved = (model(one, None).logits for one in (batch, other))
    if torch.equal(plain, moved):
        yield "the answer does not depend on the input: nothing of it is encoded"
        return
    encoders = [name for name, _ in model.named_modules() if "encoder" in name.lower()]
    seen, claim = gradients(tiny), getattr(tiny.model_class, "ENCODER_POLICY", None)
    stale = bool(seen.stale or (seen.first - seen.later) & seen.encoding)
    policy = "none" if not encoders else "cache_first_step" if stale else "reencode"
    if claim is not None and claim != policy:
        yield f"ENCODER_POLICY={claim!r}, the model does {policy}"
    yield Note("PASS", "the input is embedded: no encoder" if policy == "none" else f"the input is encoded: {policy}")


# --- evaluation and groups --------------------------------------------------------------------------------------------


@observes("CFG240", about="evaluate", after=("SCR120",), passed="an evaluation measures something")
def measured(tiny: Tiny) -> Iterator[str | Note]:
    """What the evaluators of the config and the task's own evaluation return."""
    if not evaluate(tiny.build().task):
        yield f"no evaluator is named, and {tiny.task_class.__name__} measures nothing itself: the run has no result"


@observes(
    "MOD450",
    level="WARN",
    about="evaluate",
    after=("SCR120", "MOD420"),
    passed="the full depth for every row, nothing random, no gradient",
)
def evaluation(tiny: Tiny) -> Iterator[str | Note]:
    """The depth of an evaluation, what it draws, in which mode it runs."""
    task = tiny.build().task
    model, name = task.module, type(task).__name__
    step(task, 1)
    modes: list[bool] = []
    grads: list[bool] = []

    def seen(module: nn.Module, _: Any) -> None:
        if module in inside:
            modes.append(module.training)
            grads.append(torch.is_grad_enabled())

    inside = set(model.modules())
    before, hook = torch.get_rng_state(), register_module_forward_pre_hook(seen)
    try:
        evaluate(task)
    finally:
        hook.remove()
    if any(modes):
        yield f"{name}.evaluate runs modules in training mode: dropout stays on"
    if any(grads):
        yield f"{name}.evaluate keeps gradients: it is not under no_grad"
    if not torch.equal(before, torch.get_rng_state()):
        yield "an evaluation draws random numbers: it explores, samples or drops out"
    if tiny.spec.act and not episode(tiny).carry:
        yield from evaluations(tiny)


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


def listed(names: list[str]) -> str:
    """At most four names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
