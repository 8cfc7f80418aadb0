"""Probes of values and data that must reach what is built: optimizer settings, seed and length (CFG255), changed one
key at a time; and the right split for training and for evaluation (SCR122).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor

from engine.cli.keys import inert_reason
from engine.config import NOT_IDENTITY
from engine.errors import UsageError
from engine.schema import with_defaults
from verification.probes.changes import candidates
from verification.probes.instance import Tiny, Unobservable, evaluate, same
from verification.probes.registry import Note, probe

Read = Callable[[Any], Any]


def _examples(item: Any) -> list[Tensor]:
    """The integer tensors in nested batches (tokens, identifiers), without noise."""
    if isinstance(item, Tensor):
        return [] if item.is_floating_point() else [item]
    parts = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
    parts = vars(item).values() if is_dataclass(item) else parts
    return [tensor for part in parts for tensor in _examples(part)]


def _schedule(plan: Any) -> list[float]:
    return [plan.schedule(step) for step in (1, 2, 3, plan.total_steps // 2, plan.total_steps)]


STATED = {
    "lr|learning_rate|(?!min_).*_lr": "learning rate",
    ".*weight_decay": "weight_decay",
    "beta1": "beta1",
    "beta2": "beta2",
}
"""Keys whose value an optimizer group must have -> its name there."""
CHANGING: tuple[tuple[str, str, Read], ...] = (
    ("seed", "which examples come first", lambda plan: _examples(list(plan.task.micro_batches(1)))),
    ("max_iters|epochs", "the length of the run", lambda plan: plan.total_steps),
    ("(lr_)?warmup_(steps|iters)|lr_min_ratio", "the schedule", _schedule),
)
"""(keys, description, reader) of what another value of a key must change."""


@probe("CFG255", "MOD460", about="param_groups")
def handed_on(tiny: Tiny) -> Iterator[str]:
    """Other values of numbers in the schema that have an effect with this config and are not pinned by the probes."""
    plain = tiny.build(perturbed=False)
    settings = {**with_defaults(tiny.schema, tiny.settings), "arch": tiny.full_arch}
    for name, field in tiny.schema.__dataclass_fields__.items():
        value = tiny.settings.get(name, field.default)
        if name in NOT_IDENTITY or type(value) not in (int, float) or inert_reason(tiny.launch.schema, name, settings):
            continue
        other = candidates(type(value), value)[0]
        try:
            plan = tiny.build(perturbed=False, run={name: other})
        except UsageError:
            continue  # this config does not accept the value
        fixed = name in tiny.spec.pinned or tiny.by_reference(name)
        for what in (what for pattern, what in STATED.items() if not fixed and re.fullmatch(pattern, name)):
            settings_of = [{"learning rate": group.lr, **group.options} for group in plan.task.param_groups()]
            actual = [some[what] for some in settings_of if what in some]
            if actual and other not in actual:
                yield f"{name}={other} is given, the optimizer's {what} is {', '.join(map(str, actual))}"
        for pattern, what, read in CHANGING:
            if re.fullmatch(pattern, name) and (before := read(plain)) and same(before, read(plan)):
                yield f"{name}={other} in place of {value} does not change {what}"


# --- data -------------------------------------------------------------------------------------------------------------


@probe("SCR122", about="micro_batches")
def splits(tiny: Tiny) -> Iterator[str | Note]:
    """The first batch and an evaluation: with the original data, another training split, another test split."""
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
    """(micro-batches of step 1, results of an evaluation) on data whose splits are drawn with `seeds`."""
    folder = tiny.data.with_name(name)
    assert tiny.spec.write_data is not None
    tiny.spec.write_data(folder, **seeds)
    settings: dict[str, Any] = json.loads(json.dumps(tiny.settings).replace(str(tiny.data), str(folder)))
    task = tiny.build(run=settings | {"arch": tiny.arch}).task
    return list(task.micro_batches(1)), evaluate(task)
