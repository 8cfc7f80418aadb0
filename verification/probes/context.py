"""Probes of what a row is conditioned on, its embedded or encoded input: made anew (DYN701), with a gradient (DYN702).

Looked at are the modules that are given whole numbers (tokens, identifiers), and those that are called an encoder.
Between the two steps a fixed pattern of rows is declared halted, the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from verification.probes.episodes import force
from verification.probes.instance import Recorder, Tiny, Unobservable, step
from verification.probes.registry import Note, observes


def encodes(name: str, given: Any) -> bool:
    """Whether a call of the module `name` with these arguments embeds or encodes rows."""
    numbers = (one for one in given if isinstance(one, Tensor) and not one.is_floating_point())
    return "encoder" in name.lower() or any(one.dtype is not torch.bool for one in numbers)


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
