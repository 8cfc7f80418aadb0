"""Probes of outputs: an evaluation at full depth without exploration (MOD450), repeatable (DYN709), without labels
(DYN712).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from verification.probes.episodes import episode, evaluations
from verification.probes.instance import Tiny, Unobservable, evaluate, first_batch, junk, same, step, unroll
from verification.probes.registry import probe


def _evaluated(tiny: Tiny) -> tuple[list[str], list[str]]:
    """Two evaluations of the same weights with different global seeds: (faults of how they run, differences)."""
    task = tiny.build().task
    step(task, 1)
    model, inside, name = task.module, set(task.module.modules()), type(task).__name__
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = first_batch(task) if tiny.spec.act else {}
    modes, grads, drew, results, outputs = set[bool](), set[bool](), False, [], []

    def watch(module: nn.Module, _: Any) -> None:
        if module in inside:
            modes.add(module.training)
            grads.add(torch.is_grad_enabled())

    for seed in (11, 12):
        torch.manual_seed(seed)
        state, hook = torch.get_rng_state(), register_module_forward_pre_hook(watch)
        try:
            results.append(evaluate(task))
        finally:
            hook.remove()
        drew |= not torch.equal(state, torch.get_rng_state())
        with torch.no_grad():
            outputs.append(tensors_of(model.eval()(batch)) if batch else {})
    faults = [f"{name}.evaluate runs modules in training mode: dropout stays on"] if True in modes else []
    faults += [f"{name}.evaluate keeps gradients: it is not under no_grad"] if True in grads else []
    faults += ["an evaluation draws random numbers: it explores, samples or drops out"] if drew else []
    answers = [name for name in outputs[0] if not same(outputs[0][name], outputs[1][name])]
    differ = [f"{name} of the same batch differs between two evaluations" for name in answers]
    if measured := sorted(name for name, value in results[0].items() if repr(value) != repr(results[1].get(name))):
        differ.append(f"two evaluations of the same weights give different {', '.join(measured[:4])}")
    if changed := [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]:
        differ.append(f"an evaluation changed {', '.join(changed[:4])}")
    return faults, differ


@probe("MOD450", "MOD420", level="WARN", about="evaluate")
def evaluation(tiny: Tiny) -> Iterator[str]:
    """The depth of an evaluation, its use of random numbers, and the mode in which it runs."""
    yield from tiny.once(_evaluated)[0]
    if tiny.spec.act and not episode(tiny).carry:
        yield from evaluations(tiny)


@probe("DYN709", about="evaluate")
def repeated(tiny: Tiny) -> Iterator[str]:
    """The results of two evaluations, the model's outputs for one batch after each, and its weights."""
    yield from tiny.once(_evaluated)[1]


@probe("MOD441", act=False, about="loss", passed="the loss compares the answers to the inputs with the targets")
def scored(tiny: Tiny) -> Iterator[str]:
    """Other targets, and other inputs, change the loss of a micro-batch."""
    if tiny.spec.others is None:
        raise Unobservable("the family defines no other targets")
    task = tiny.build().task
    batch = next(iter(task.micro_batches(1)))
    plain, *others = (float(task.loss(one)[0].detach()) for one in (batch, *tiny.spec.others(batch)))
    for what, other in zip(("targets", "inputs"), others, strict=True):
        if other == plain:
            yield f"{type(task).__name__}.loss is the same with other {what}: it does not read them"


@probe("DYN712", "MOD420", act=True)
def leakage(tiny: Tiny) -> Iterator[str]:
    """Two training steps and an evaluation give the same with the true labels and with junk."""
    task = tiny.build().task
    model, true = task.module, first_batch(task)
    false = {**true, "labels": junk(true["labels"])}
    for training in (True, False):
        model.train(training)
        of_true, of_junk = (list(map(tensors_of, unroll(model, batch, 1 + training))) for batch in (true, false))
        for number, (a, b) in enumerate(zip(of_true, of_junk, strict=True), 1):
            if leaking := [name for name in a if not same(a[name], b[name])]:
                where = f"training step {number}" if training else "evaluation"
                yield f"{', '.join(leaking)} of {where} depend on the labels"


def tensors_of(output: Any) -> dict[str, Tensor | None]:
    """All tensors of a model's output but the data in the carry."""
    own = {name: getattr(output, name) for name in output.__dataclass_fields__ if name != "carry"}
    blocks = [name for name, value in own.items() if isinstance(value, dict)]
    parts = {f"{name}.{key}": value for name in blocks for key, value in own.pop(name).items()}
    return {**own, **parts, "halted": output.carry.halted, "steps": output.carry.steps}
