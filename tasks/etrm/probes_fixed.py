"""What the common probes mean for a model with a fixed number of ACT steps: all of them in one training step.

Each is the family's own row for its code; for a dynamic model the common one is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.encoders.base import DemoEncoder
from verification.probes import encoding  # noqa: F401  it registers its probes
from verification.probes.episodes import evaluations
from verification.probes.instance import Recorder, Tiny, Unobservable, first_batch, junk, set_halting, step
from verification.probes.mode import idle_cycles
from verification.probes.registry import PROBES as COMMON, Note, Probe

Found = Iterator["str | Note"]


def fixed(tiny: Tiny) -> bool:
    return getattr(tiny.model_class, "ACT_MODE", None) == "fixed"


@contextmanager
def encodings(model: Any) -> Iterator[list[Tensor]]:
    """The contexts that encoders make, call by call."""
    made: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: made.append(output.context))
        for module in model.modules()
        if isinstance(module, DemoEncoder)
    ]
    try:
        yield made
    finally:
        for hook in hooks:
            hook.remove()


def calls(tiny: Tiny) -> tuple[list[int], int, int]:
    """One training step: rows of each encoding, rows of the batch, ACT steps that were computed."""
    task = tiny.build().task
    batch, thought = first_batch(task), counted(task.model.inner)
    with torch.no_grad(), encodings(task.module) as made:
        task.module.train()(batch, None)
    return [len(context) for context in made], len(batch["inputs"]), len(thought)


def counted(inner: Any) -> list[int]:
    """Grows by one with every ACT step that `inner` computes from now on."""
    taken: list[int] = []
    plain = inner.recur

    def recur(*args: Any) -> Any:
        taken.append(len(taken))
        return plain(*args)

    inner.recur = recur
    return taken


def encoded_once(tiny: Tiny) -> Found:
    """DYN701, MOD431: of a fixed model every row once, before its first step."""
    rows, size, steps = calls(tiny)
    if rows != [size]:
        yield f"a training step of {size} rows and {steps} ACT steps encoded {rows or 'no'} rows: expected them once"


def policy(tiny: Tiny) -> Found:
    """MOD430: the declared policy, and that the answer depends on the query."""
    rows, size, steps = calls(tiny)
    done = tiny.kept["encoder_policy"] = "cache_first_step" if rows == [size] and steps > 1 else "reencode"
    if (claim := getattr(tiny.model_class, "ENCODER_POLICY", None)) != done:
        yield f"ENCODER_POLICY={claim!r}, the model does {done}"
    yield Note("PASS", f"the demonstrations are encoded: {done}")


def depth(tiny: Tiny) -> Found:
    """MOD422, DYN708: as many steps for each batch as the config says, and all cycles."""
    if not fixed(tiny):
        raise Unobservable("a dynamic model takes one step for each optimizer step")
    for count in (1, 2, 3):
        task = tiny.build(num_act_steps=count).task
        recorder, thought = Recorder(task.module), counted(task.model.inner)
        step(task, 1)
        step(task, 2)
        taken = recorder.calls[-1].output.carry.steps
        if len(thought) != 2 * count or sorted(set(taken.tolist())) != list(range(1, count + 1)):
            yield f"arch.num_act_steps={count}: {len(thought) / 2:g} ACT steps for each batch"
        if recorder.calls[-1].carry is not None:
            yield "the second batch got the carry of the first one"


def cycles(tiny: Tiny) -> Found:
    """MOD422 of a fixed model."""
    yield from depth(tiny)
    yield from idle_cycles(tiny)


def begins_anew(tiny: Tiny) -> Found:
    """DYN705: no carry, and an example of its own for every slot at each step."""
    task = tiny.build().task
    recorder = Recorder(task.module)
    step(task, 1)
    step(task, 2)
    first, second = recorder.calls
    if second.carry is not None:
        yield "a fixed model got the carry of the batch before"
    if torch.equal(first.batch["inputs"], second.batch["inputs"]):
        yield "two batches hold the same examples"


def every_step_trains(tiny: Tiny) -> Found:
    """DYN702: the one context of an example gets a gradient from each of its steps."""
    task = tiny.build().task
    with encodings(task.module) as made:
        output = task.module.train()(first_batch(task), None)
    for number, logits in enumerate(output.logits.chunk(tiny.max_steps), 1):
        (grad,) = torch.autograd.grad(logits.square().sum(), made[0], retain_graph=True, allow_unused=True)
        if grad is None or not bool((grad != 0).flatten(1).any(1).all()):
            yield f"step {number} of {tiny.max_steps} gives the context of its demonstrations no gradient"


def reads_labels(tiny: Tiny) -> Found:
    """DYN706."""
    losses = []
    for change in (None, lambda batch: batch.update(labels=junk(batch["labels"]))):
        losses.append(step(tiny.build().task, 1, change))
    if losses[0] == losses[1]:
        yield "other labels changed nothing: the loss does not read them"


def never_halts(tiny: Tiny) -> Found:
    """DYN707: the same steps whatever q says, in training and in evaluation."""
    last = tiny.max_steps
    for willing in (True, False):
        task = tiny.build().task
        set_halting(task.module, willing)
        recorder = Recorder(task.module)
        step(task, 1)
        carry = recorder.calls[-1].output.carry
        if carry.steps.tolist() != sorted([*range(1, last + 1)] * (len(carry.steps) // last)):
            yield f"q {'+' if willing else '-'}10: not every row takes {last} steps"
        if not torch.equal(carry.halted, carry.steps == last):
            yield "rows are called halted before their last step"
    yield from evaluations(tiny)


def _for_fixed(code: str, own: Any) -> Any:
    """The common probe for dynamic models, `own` for fixed ones."""

    def run(tiny: Tiny) -> Found:
        yield from own(tiny) if fixed(tiny) else COMMON[code, True].run(tiny)

    return run


def fixed_rows() -> Iterator[Probe]:
    """The common probes that episodes, encodings and depth are about, for both ACT modes."""
    passed = {
        "DYN701": (encoded_once, "each training step encodes every row of its batch"),
        "DYN702": (every_step_trains, "every step gives the context of its demonstrations a gradient"),
        "MOD430": (policy, ""),
        "MOD431": (encoded_once, "the demonstrations of each row are encoded once for all its steps"),
        "MOD422": (cycles, "as many steps and cycles as the arch block says"),
        "DYN705": (begins_anew, "every batch begins anew, with the next example of every slot"),
        "DYN706": (reads_labels, "the loss reads the labels of the batch"),
        "DYN707": (never_halts, "every row takes num_act_steps steps, whatever q says"),
    }
    for code, (own, text) in passed.items():
        common = COMMON[code, True]
        yield replace(common, run=_for_fixed(code, own), passed=text if not common.passed else common.passed)
