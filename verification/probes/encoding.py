"""What a row is conditioned on, its embedded or encoded input: made anew at each step (MOD431, DYN701), with a gradient
(MOD432, DYN702), in the way that the class declares (MOD430).

Looked at are the modules that are given whole numbers (tokens, identifiers), and those that are called an encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from verification.probes.episodes import force
from verification.probes.instance import (
    Recorder,
    Tiny,
    Unobservable,
    finish_step,
    first_batch,
    listed,
    step,
    tables,
)
from verification.probes.registry import Note, observes


def encodes(name: str, given: Any) -> bool:
    """Whether a call of the module `name` with these arguments embeds or encodes rows."""
    numbers = (one for one in given if isinstance(one, Tensor) and not one.is_floating_point())
    return "encoder" in name.lower() or any(one.dtype is not torch.bool for one in numbers)


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


# --- row by row, with a fixed pattern of halted rows between two steps ------------------------------------------------


def _watched(tiny: Tiny) -> tuple[Any, dict[str, list[Tensor]]]:
    """(a task, what its modules have embedded or encoded since: name of the module -> its outputs)."""
    task = tiny.build(run={"accumulation": 1}).task
    Recorder(task.module, force)
    made: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def seen(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and encodes(name, given):
                made.setdefault(name, []).append(output)
                if output.requires_grad:
                    output.retain_grad()

        return seen

    for name, module in task.module.named_modules():
        if name:
            module.register_forward_hook(watch(name))
    return task, made


@observes(
    "DYN701",
    act=True,
    passed="each training step embeds or encodes every row of its batch anew",
    fix="embed (encode) carry.data unconditionally in the training method",
)
def encoded_rows(tiny: Tiny) -> Iterator[str | Note]:
    """Rows that a second step embeds, some of which go on, against those of the first."""
    task, made = _watched(tiny)
    if getattr(tiny.model_class, "ACT_MODE", None) != "dynamic":
        raise Unobservable("what a step must encode is known of dynamic halting only")
    counts: list[dict[str, int]] = []
    for number in (1, 2):
        made.clear()
        step(task, number)
        counts.append({name: sum(len(output) for output in outputs) for name, outputs in made.items()})
    if not counts[0]:
        raise Unobservable("no module of the model embeds or encodes")
    for name, rows in counts[0].items():
        if (again := counts[1].get(name, 0)) < rows:
            yield f"{name} embedded {rows} rows in step 1 and {again} in step 2: the others go on with an old embedding"


@observes(
    "DYN702",
    act=True,
    passed="a gradient reaches the embedding of every row, also of rows that go on",
    fix="no detach, no_grad or torch.where between the embedding (encoding) of a row and its use",
)
def gradient_of_rows(tiny: Tiny) -> Iterator[str | Note]:
    """The gradient of the loss of a second step with respect to what the step embedded."""
    task, made = _watched(tiny)
    step(task, 1)
    made.clear()
    for micro_batch in task.micro_batches(2):
        task.loss(micro_batch)[0].backward()
    grads = [output.grad for outputs in made.values() for output in outputs if output.grad is not None]
    if not grads:
        yield "no gradient reaches what a step embeds: the embedding (encoder) never learns"
        return
    rows = max(len(grad) for grad in grads)
    touched = [(grad != 0).flatten(1).any(dim=1) for grad in grads if len(grad) == rows]
    dry = torch.nonzero(~torch.stack(touched).any(dim=0)).flatten().tolist()
    if dry:
        yield f"no gradient reaches the embedding of {len(dry)} of {rows} rows ({dry[:6]})"
