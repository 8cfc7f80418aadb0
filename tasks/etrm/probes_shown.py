"""Probes of what rows are asked and shown: the next example of a slot's stream, with demonstrations of its own task and
without the answer; and whether the keys that say so are handed on.

In the tiny data (tasks/etrm/verify.py) a task is a permutation of words, so demonstrations tell whose they are.

Shapes: B rows, K demonstrations, T cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.recursive_reasoning.etrm import DEMONSTRATIONS
from verification.probes.episodes import pattern
from verification.probes.instance import Recorder, Tiny, evaluate, first_batch, step

Batch = dict[str, Tensor]
STEPS = 3


def slots(tiny: Tiny) -> Iterator[str]:
    """DYN705: a slot that is done takes the next example of its stream, however long the others have thought."""
    task = tiny.build(run={"accumulation": 1}).task
    fixed = task.model.ACT_MODE == "fixed"

    def halt(number: int, output: Any) -> Any:
        rows = pattern(output.carry) if number == 0 else ~pattern(output.carry)
        return output if fixed else replace(output, carry=replace(output.carry, halted=rows))

    recorder = Recorder(task.module, halt)
    taken = torch.zeros(task.global_rows, dtype=torch.int64)
    for number in range(1, STEPS + 1):
        step(task, number)
        call = recorder.calls[-1]
        fresh = torch.ones_like(taken, dtype=torch.bool) if call.carry is None else call.carry.halted
        where = fresh.nonzero().flatten()
        expected = task.sampler.take(where.numpy(), taken[where].numpy())
        other = sum(
            not torch.equal(call.batch["inputs"][s], torch.from_numpy(x))
            for s, x in zip(where, expected["inputs"], strict=True)
        )
        if other:
            yield f"step {number} offers {other} of {len(where)} slots that are done another example than their next"
            return
        taken += fresh


def shown(tiny: Tiny) -> Iterator[tuple[str, Batch]]:
    """(what it is, batch) of training under two policies and of an evaluation."""
    for policy in ("test_only", "leave_one_out"):
        task = tiny.build(run={"query_policy": policy}).task
        yield f"training (query_policy={policy})", first_batch(task)
    task = tiny.build(run={"evaluators": []}).task
    recorder = Recorder(task.module)
    evaluate(task)
    yield from (("the evaluation", call.batch) for call in recorder.calls if not call.training)


def no_answer_is_shown(tiny: Tiny) -> Iterator[str]:
    """DYN712: the pair that is asked is not among those that are shown."""
    for what, batch in shown(tiny):
        inputs, labels, mask = (batch[name] for name in DEMONSTRATIONS)
        pair = (inputs == batch["inputs"][:, None]).all(-1) & (labels == batch["labels"][:, None]).all(-1)
        if rows := int((pair & mask).any(1).sum()):
            yield f"{what} shows {rows} of {len(mask)} rows the very answer that they are asked for"


def own_task_is_shown(tiny: Tiny) -> Iterator[str]:
    """DYN711: what is shown belongs to the task that is asked; an evaluation shows all demonstrations."""
    for what, batch in shown(tiny):
        mask = batch["demo_mask"]
        if rows := int((~mask.any(1)).sum()):
            yield f"{what} shows {rows} of {len(mask)} rows no demonstration"
        elif "evaluation" in what and not bool(mask.all()):  # all tasks of the tiny data have equally many
            yield f"{what} leaves out demonstrations: {int(mask.sum(1).min())} of {mask.shape[1]} are shown"
        if rows := int(_foreign(batch).sum()):
            yield f"{what} shows {rows} of {len(mask)} rows demonstrations of another task"


def _foreign(batch: Batch) -> Tensor:
    """[B] bool: rows in which a word of the query is answered otherwise than in a demonstration."""
    inputs, labels, mask = (batch[name] for name in DEMONSTRATIONS)
    words = torch.where(mask[..., None], inputs, 0).flatten(1).long()
    answers = torch.where(mask[..., None], labels, -1).flatten(1).long()
    size = 1 + max(int(inputs.max()), int(batch["inputs"].max()))
    told = torch.full((len(mask), size), -1).scatter(1, words, answers)
    answer = told.gather(1, batch["inputs"].long())
    return ((answer >= 0) & (batch["inputs"] > 1) & (answer != batch["labels"])).any(1)


KEYS: tuple[tuple[dict[str, Any], str, Callable[[Any, Batch], bool]], ...] = (
    (
        {"max_demos": 1},
        "more than one demonstration is shown",
        lambda _, batch: int(batch["demo_mask"].sum(1).max()) <= 1,
    ),
    (
        {"max_train_groups": 1},
        "more than one task is trained on",
        lambda _, batch: len(batch["group_ids"].unique()) == 1,
    ),
    (
        {"demo_dropout": 0.95, "query_policy": "test_only", "min_demos": 1, "max_demos": 10},
        "no demonstration is left out",
        lambda _, batch: not bool(batch["demo_mask"].all()),
    ),
    (
        {"encoder_lr_scale": 0.5},
        "the encoder's learning rate is not half of the trunk's",
        lambda task, _: _halved(task),
    ),
)
"""Run keys, what is wrong where they have no effect, and the test of it."""


def _halved(task: Any) -> bool:
    rates = {group.name: group.lr for group in task.param_groups()}
    return bool(rates.get("encoder") == rates.get("trunk", 0.0) / 2)


def keys_are_handed_on(tiny: Tiny) -> Iterator[str]:
    """CFG255: run keys of this family that the schedule and the optimizers do not have."""
    for run, wrong, holds in KEYS:
        task = tiny.build(stirred=False, run=run).task
        if not holds(task, first_batch(task)):
            key, value = next(iter(run.items()))
            yield f"{key}={value} is given, and {wrong}"
    asked = [
        first_batch(tiny.build(stirred=False, run={"query_policy": one}).task) for one in ("test_only", "leave_one_out")
    ]
    if torch.equal(asked[0]["inputs"], asked[1]["inputs"]):
        yield "query_policy=leave_one_out asks what test_only asks"
