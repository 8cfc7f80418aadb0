"""The common probes for models with ACT_MODE=fixed: all steps of an example are in one training step.

There is no carry. The model returns the logits of every step, concatenated along the rows: [A·B, ...] for B rows and
A = num_act_steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from verification.probes.encoding import encodes
from verification.probes.episodes import evaluations
from verification.probes.instance import Recorder, Tiny, Unobservable, first_batch, junk, listed, set_halting, step
from verification.probes.mode import idle_cycles, ran
from verification.probes.registry import FIXED, PROBES, Note, Observation, Probe

Found = Iterator["str | Note"]


def fixed(code: str, passed: str) -> Callable[[Observation], Observation]:
    """Register the decorated generator as the probe of `code` for models with fixed steps."""

    def register(run: Observation) -> Observation:
        common = PROBES.get((code, True)) or Probe(code=code, run=run, after=("MOD421",))
        PROBES[code, FIXED] = replace(common, run=run, passed=passed)
        return run

    return register


@contextmanager
def encoded(tiny: Tiny, model: Any) -> Iterator[list[tuple[str, Any]]]:
    """(module, output) of each call that embeds or encodes rows, in order."""
    names, outputs = {id(module): name for name, module in model.named_modules()}, list[tuple[str, Any]]()

    def watch(module: Any, inputs: Any, output: Any) -> None:
        if encodes(tiny, name := names.get(id(module), ""), inputs):
            outputs.append((name, output))

    hook = register_module_forward_hook(watch)
    try:
        yield outputs
    finally:
        hook.remove()


def training_step(tiny: Tiny, count: int) -> tuple[int, int, Any]:
    """A training step of `count` ACT steps: (calls that embed or encode, calls of the busiest module, output)."""
    task = tiny.build(num_act_steps=count).task
    with encoded(tiny, task.module) as outputs:
        _, depth, output = ran(task.module.train(), first_batch(task))
    return len(outputs), depth, output


@fixed("DYN701", "each training step encodes every row of its batch")
@fixed("MOD431", "the demonstrations of each row are encoded once for all its steps")
def encoded_once(tiny: Tiny) -> Found:
    """Three ACT steps encode as often as one."""
    (once, *_), (calls, *_) = training_step(tiny, 1), training_step(tiny, 3)
    if calls != once or not once:
        yield f"3 ACT steps embed and encode {calls} times, a single one {once} times: expected once for all steps"


@fixed("MOD430", "")
def policy(tiny: Tiny) -> Found:
    """The encoder's policy is the declared one."""
    done = "reencode" if any(encoded_once(tiny)) else "cache_first_step"
    if (claim := getattr(tiny.model_class, "ENCODER_POLICY", None)) != done:
        yield f"ENCODER_POLICY={claim!r}, the model does {done}"
    yield Note("PASS", f"the input is encoded: {done}")


@fixed("DYN708", "num_act_steps steps for each batch, and no carry between batches")
def depth(tiny: Tiny) -> Found:
    """The steps in the output, and the calls of the busiest module, for 1 to 3 ACT steps."""
    first = training_step(tiny, 1)[1]
    for count in (1, 2, 3):
        _, calls, output = training_step(tiny, count)
        if calls != count * first or sorted(set(output.carry.steps.tolist())) != list(range(1, count + 1)):
            yield f"arch.num_act_steps={count}: {calls / first:g} ACT steps for each batch"
    yield from begins_anew(tiny)


@fixed("MOD422", "as many steps and cycles as the arch block says")
def cycles(tiny: Tiny) -> Found:
    """As `depth`; and every cycle has an effect."""
    yield from depth(tiny)
    yield from idle_cycles(tiny)


@fixed("DYN705", "every batch starts over, with other examples than the one before")
def begins_anew(tiny: Tiny) -> Found:
    """The second batch gets no carry and has other examples."""
    task = tiny.build().task
    recorder = Recorder(task.module)
    step(task, 1)
    step(task, 2)
    first, second = recorder.calls
    if second.carry is not None:
        yield "the second batch got the carry of the first one"
    if torch.equal(first.batch["inputs"], second.batch["inputs"]):
        yield "two batches hold the same examples"


@fixed("DYN702", "every step gives what encodes its rows a gradient")
def every_step_trains(tiny: Tiny) -> Found:
    """The gradient of each step's logits with respect to the outputs of the modules that encode the rows."""
    task = tiny.build().task
    batch = first_batch(task)
    with encoded(tiny, task.module) as outputs:
        output = task.module.train()(batch, None)
    rows = {name: one for name, one in outputs if isinstance(one, Tensor) and len(one) == len(batch["inputs"])}
    rows = {name: one for name, one in rows.items() if one.requires_grad}
    if len(output.logits) != tiny.max_steps * len(batch["inputs"]) or not rows:
        raise Unobservable("the model does not answer for every step, or encodes nothing")
    for number, logits in enumerate(output.logits.chunk(tiny.max_steps), 1):
        grads = torch.autograd.grad(logits.square().sum(), list(rows.values()), retain_graph=True, allow_unused=True)
        touched = {
            name: grad is not None and (grad != 0).flatten(1).any(1) for name, grad in zip(rows, grads, strict=True)
        }
        if dry := [name for name, each in touched.items() if each is False or not bool(each.all())]:
            yield f"step {number} of {tiny.max_steps} gives {listed(dry)} no gradient"


@fixed("DYN706", "the loss reads the labels of the batch")
def reads_labels(tiny: Tiny) -> Found:
    """Other labels change the loss of a step."""
    plain, other = (
        step(tiny.build().task, 1, change)
        for change in (None, lambda batch: batch.update(labels=junk(batch["labels"])))
    )
    if plain == other:
        yield "other labels changed nothing: the loss does not read them"


@fixed("DYN707", "every row takes num_act_steps steps, whatever q says")
def never_halts(tiny: Tiny) -> Found:
    """The steps are the same with the halting head fixed to +10 and -10, in training and in evaluation."""
    last = tiny.max_steps
    for halt in (True, False):
        task = tiny.build().task
        set_halting(task.module, halt)
        recorder = Recorder(task.module)
        step(task, 1)
        carry = recorder.calls[-1].output.carry
        if carry.steps.tolist() != sorted([*range(1, last + 1)] * (len(carry.steps) // last)):
            yield f"q {'+' if halt else '-'}10: not every row takes {last} steps"
        if not torch.equal(carry.halted, carry.steps == last):
            yield "rows are called halted before their last step"
    yield from evaluations(tiny)
