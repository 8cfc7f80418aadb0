"""Probes of the embedded or encoded input of a row: it is computed at each step (MOD431, DYN701), with a gradient
(MOD432, DYN702), by the policy that the class declares (MOD430).

Observed are modules with integer inputs (tokens, identifiers) and those that the family declares as encoders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from verification.probes.instance import (
    Recorder,
    Tiny,
    Unobservable,
    finish_step,
    first_batch,
    listed,
    tables,
)
from verification.probes.registry import Note, probe


def encodes(tiny: Tiny, name: str, inputs: Any) -> bool:
    """Whether a call of module `name` with arguments `inputs` embeds or encodes rows."""
    numbers = (one for one in inputs if isinstance(one, Tensor) and not one.is_floating_point())
    return tiny.spec.is_encoder(name) or any(one.dtype is not torch.bool for one in numbers)


@dataclass
class Gradients:
    """Which parameters (and sparse tables) a whole episode trains, and what it embeds or encodes."""

    first: set[str] = field(default_factory=set)
    """Parameters that get a gradient from a step of fresh rows."""
    later: set[str] = field(default_factory=set)
    """Parameters that get one from steps of continuing rows."""
    encoding: set[str] = field(default_factory=set)
    """Parameters of encoders and of modules with integer inputs (tokens, identifiers)."""
    rows: list[Counter[str]] = field(default_factory=list)
    """For each step: module -> number of rows that it embedded or encoded."""
    dry: str = ""
    """A message about rows whose embedding gets no gradient."""
    error: str = ""
    stale: str = ""
    """Why a later step cannot be differentiated although the first one can."""


def gradients(tiny: Tiny) -> Gradients:
    """The gradients of a whole episode without an optimizer; observed once for all probes."""
    return tiny.once(_gradients)


def _gradients(tiny: Tiny) -> Gradients:
    seen, task = Gradients(), tiny.build().task
    names: dict[int, tuple[str, list[str]]] = {}
    outputs: list[Tensor] = []
    for name, module in task.module.named_modules():
        own = [f"{name}.{own}" for own, _ in module.named_parameters(recurse=tiny.spec.is_encoder(name))]
        names[id(module)] = name, [*own, *([name] if hasattr(type(module), "take_pending") else [])]

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        name, own = names.get(id(module), ("", []))
        if not encodes(tiny, " ".join([name, *own]), inputs):
            return
        seen.encoding.update(own)
        if name and isinstance(output, Tensor):
            seen.rows[-1][name] += len(output)
            if output.requires_grad:
                output.retain_grad()
                outputs.append(output)

    hook = register_module_forward_hook(watch)
    try:
        for number, loss in _episode_losses(tiny, task, seen.rows):
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
            trained = {n for n, p in task.module.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
            trained |= {name for name, table in tables(task.module).items() if _has_gradient(table)}
            (seen.first if number == 1 else seen.later).update(trained)
            seen.dry = seen.dry or _dry(number, [output.grad for output in outputs if output.grad is not None])
            outputs.clear()
    finally:
        hook.remove()
    return seen


def _dry(number: int, grads: list[Tensor]) -> str:
    """A message about rows of a micro-batch whose embedding gets no gradient; "" if there are none."""
    if not grads:
        return f"no gradient reaches what step {number} embeds: the embedding (encoder) never learns"
    rows = max(len(grad) for grad in grads)
    touched = [(grad != 0).flatten(1).any(dim=1) for grad in grads if len(grad) == rows]
    dry = torch.nonzero(~torch.stack(touched).any(dim=0)).flatten().tolist()
    where = f"{len(dry)} of {rows} rows ({dry[:6]}) in step {number}"
    return f"no gradient reaches the embedding of {where}" if dry else ""


def _episode_losses(tiny: Tiny, task: Any, rows: list[Counter[str]] | None = None) -> Iterator[tuple[int, Tensor]]:
    """(step, loss) of a whole episode in which no row halts early; two steps of models without episodes.

    A counter is appended to `rows` for each step.
    """
    if tiny.spec.act:
        Recorder(task.module, _none_halted)
    for number in range(1, max(tiny.max_steps if tiny.spec.act else 2, 2) + 1):
        if rows is not None:
            rows.append(Counter())
        for micro_batch in task.micro_batches(number):
            yield number, task.loss(micro_batch)[0]
        finish_step(task)


def _none_halted(_: int, output: Any) -> Any:
    """The output with no row halted."""
    return replace(output, carry=replace(output.carry, halted=torch.zeros_like(output.carry.halted)))


def _has_gradient(table: Any) -> bool:
    return any(rows.grad is not None and bool((rows.grad != 0).any()) for _, rows in getattr(table, "pending", ()))


@probe("MOD432", "MOD420")
def reaches(tiny: Tiny) -> Iterator[str | Note]:
    """Parameters that change the losses of an episode but get no gradient from them."""
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
        yield f"{listed(detached)} got no gradient in a whole episode: detached or under no_grad"


def _episode_sum(tiny: Tiny, name: str) -> float:
    """The sum of the losses of an episode, with noise on the parameter (or sparse table) `name`."""
    task = tiny.build().task
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        if name:
            values = {n: table.weights for n, table in tables(task.module).items()}
            values |= dict(task.module.named_parameters())
            values[name].add_(torch.randn(values[name].shape, generator=generator).to(values[name].dtype))
        torch.manual_seed(5)  # for dropout
        return sum(float(loss) for _, loss in _episode_losses(tiny, task))


@probe("MOD431", "MOD432", "MOD440", act=True)
def encodes_each_step(tiny: Tiny) -> Iterator[str | Note]:
    """Steps of continuing rows train the encoding parameters that the first step trained."""
    seen, dynamic = gradients(tiny), tiny.act_mode == "dynamic"
    missing = sorted((seen.first - seen.later) & seen.encoding)
    if not seen.stale and not missing:
        text = "encoded at every step; the model is " + ("dynamic" if dynamic else "not dynamic")
        yield Note("PASS" if dynamic else "WARN", text)
        return
    text = f"steps of continuing rows give no gradient to {listed(missing)}: what an earlier step encoded is kept"
    if seen.stale:
        text = f"a step of continuing rows works with what an earlier step has computed ({seen.stale})"
    yield Note("FAIL" if dynamic else "PASS", text)


@probe("MOD430", "MOD421", "MOD432", act=True)
def encoding(tiny: Tiny) -> Iterator[str | Note]:
    """Answers depend on the input, and the encoder's policy is the declared one."""
    task = tiny.build().task
    model, batch = task.module.train(), first_batch(task)
    other = {name: value.roll(1, 0) if name == "inputs" else value for name, value in batch.items()}
    with torch.no_grad():
        plain, changed = (model(one, None).logits for one in (batch, other))
    if torch.equal(plain, changed):
        yield "the answer does not depend on the input: nothing of it is encoded"
        return
    encoders = [name for name, _ in model.named_modules() if tiny.spec.is_encoder(name)]
    seen, claim = gradients(tiny), getattr(tiny.model_class, "ENCODER_POLICY", None)
    stale = bool(seen.stale or (seen.first - seen.later) & seen.encoding)
    policy = "none" if not encoders else "cache_first_step" if stale else "reencode"
    if claim is not None and claim != policy:
        yield f"ENCODER_POLICY={claim!r}, the model does {policy}"
    yield Note("PASS", "the input is embedded: no encoder" if policy == "none" else f"the input is encoded: {policy}")


# --- row by row -------------------------------------------------------------------------------------------------------


@probe("DYN701", act=True)
def encoded_rows(tiny: Tiny) -> Iterator[str]:
    """Each later step, in which all rows continue, embeds as many rows as the first."""
    if tiny.act_mode != "dynamic":
        raise Unobservable("what a step must encode is known of dynamic halting only")
    first, *later = gradients(tiny).rows
    if not first or not later:
        raise Unobservable(gradients(tiny).error or "no module of the model embeds or encodes")
    for name, rows in first.items():
        if (fewest := min(step[name] for step in later)) < rows:
            yield f"{name} embedded {rows} rows in step 1 and {fewest} in a later one: the others keep an old one"


@probe("DYN702", act=True)
def gradient_of_rows(tiny: Tiny) -> Iterator[str]:
    """The gradient of each step's loss with respect to what the step embedded."""
    seen = gradients(tiny)
    if problem := seen.error or seen.stale or seen.dry:
        yield problem
