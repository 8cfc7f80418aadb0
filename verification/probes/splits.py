"""Whose examples are read: training reads its own split and nothing of the other, an evaluation reads the other one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from verification.probes.instance import Tiny, Unobservable, evaluate, same
from verification.probes.registry import Note, observes


@observes("SCR122", about="micro_batches", passed="training reads the training split alone, the evaluation another one")
def splits(tiny: Tiny) -> Iterator[str | Note]:
    """The first batch and an evaluation: as they are, with another training split, with another one to evaluate."""
    if tiny.spec.write_data is None or not tiny.spec.splits:
        raise Unobservable("the family reads no data sets")
    batch, results = _reads(tiny, "as_it_is")
    other_batch, trained_results = _reads(tiny, "other_train", train=1)
    same_batch, other_results = _reads(tiny, "other_test", test=1)
    if not same(batch, same_batch):
        yield "the training batches change with the split that is evaluated: the answers are trained on"
    if same(batch, other_batch):
        yield "the training batches do not change with the training split: something else is trained on"
    if not results:
        raise Unobservable("the task evaluates nothing")
    if repr(results) == repr(other_results):
        yield Note("FAIL", "the evaluation does not change with the split that is evaluated", tiny.task_class.evaluate)
        return
    for name in (name for name in results if name.startswith("eval/") and "train" not in name):
        first, trained, other = (repr(seen.get(name)) for seen in (results, trained_results, other_results))
        if first == other != trained:
            yield Note("FAIL", f"{name} changes with the training split only", tiny.task_class.evaluate)


def _reads(tiny: Tiny, name: str, **seeds: int) -> tuple[list[Any], dict[str, Any]]:
    """(micro-batches of step 1, what an evaluation measures) on data whose splits are drawn with these seeds."""
    folder = tiny.data.with_name(name)
    assert tiny.spec.write_data is not None
    tiny.spec.write_data(folder, **seeds)
    moved: dict[str, Any] = json.loads(json.dumps(tiny.settings).replace(str(tiny.data), str(folder)))
    task = tiny.build(run=moved | {"arch": tiny.arch}).task
    return list(task.micro_batches(1)), evaluate(task)
