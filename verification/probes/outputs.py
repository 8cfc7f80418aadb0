"""Probes of what comes out: repeatable evaluation (DYN709), no labels in answers (DYN712)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from verification.probes.instance import Tiny, evaluate, first_batch, junk, same, step
from verification.probes.registry import Note, observes


@observes(
    "DYN709",
    passed="two evaluations give the same numbers and leave the model as it was",
    about="evaluate",
    fix="no sampling, dropout or exploration in an evaluation; a variational encoder uses its mean",
)
def evaluation(tiny: Tiny) -> Iterator[str | Note]:
    """The same batch, then the whole evaluation, twice under different global seeds."""
    task = tiny.build().task
    step(task, 1)
    model, results, outputs = task.module, [], []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if tiny.spec.act:
        batch = first_batch(task)
        model.eval()
        for seed in (11, 12):
            torch.manual_seed(seed)
            with torch.no_grad():
                outputs.append(_tensors(model(batch)))
    for seed in (11, 12):
        torch.manual_seed(seed)
        results.append(evaluate(task))
    for name in outputs[0] if outputs else ():
        if not same(outputs[0][name], outputs[1][name]):
            yield f"{name} of the same batch differs between two evaluations"
    if differing := [name for name, value in results[0].items() if repr(value) != repr(results[1].get(name))]:
        yield f"two evaluations of the same weights give different {', '.join(sorted(differing)[:4])}"
    if moved := [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]:
        yield f"an evaluation changed {', '.join(moved[:4])}"


@observes(
    "DYN712",
    act=True,
    after=("SCR120", "MOD420"),
    passed="no output depends on the labels, in training and in evaluation",
    fix="keep labels out of everything that the model computes from; only the loss may read carry.data['labels']",
)
def leakage(tiny: Tiny) -> Iterator[str | Note]:
    """Two training steps and an evaluation with the true labels and with junk."""
    task = tiny.build().task
    model, true = task.module, first_batch(task)
    false = {**true, "labels": junk(true["labels"])}
    with torch.no_grad():
        for mode in (True, False):
            model.train(mode)
            told, other = (list(_chain(model, batch, 2 if mode else 1)) for batch in (true, false))
            for number, (a, b) in enumerate(zip(told, other, strict=True), 1):
                if leaking := [name for name in a if not same(a[name], b[name])]:
                    where = f"training step {number}" if mode else "evaluation"
                    yield f"{', '.join(leaking)} of {where} depend on the labels"


def _chain(model: Any, batch: dict[str, Tensor], steps: int) -> Iterator[dict[str, Tensor | None]]:
    state = None
    for _ in range(steps):
        torch.manual_seed(5)
        output = model(batch, state)
        state = output.carry
        yield _tensors(output)


def _tensors(output: Any) -> dict[str, Tensor | None]:
    """Everything in a model's output but the carried data."""
    own = {name: getattr(output, name) for name in output.__dataclass_fields__ if name != "carry"}
    blocks = [name for name, value in own.items() if isinstance(value, dict)]
    parts = {f"{name}.{key}": value for name in blocks for key, value in own.pop(name).items()}
    return {**own, **parts, "halted": output.carry.halted, "steps": output.carry.steps}
