"""What another value of a config key changes: candidate values, and the aspects in which short runs are compared."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin

import torch

from engine.cli.keys import is_union
from engine.errors import UsageError
from engine.fields import declared, value_at
from engine.registry import resolve
from verification.probes.instance import Tiny, fit, same
from verification.spec import Settings

TRIES = 6
"""Other values that are tried before a key is called dead."""
NUMBERS = {int: (1, 2, 0), float: (0.5, 0.01, 2.0)}
"""Candidates if the value is null."""
Way = tuple[Settings, Settings]
"""(settings held in both runs, settings that change); keys of the architecture begin with `arch.`."""
See = Callable[[Settings], Mapping[str, Any]]
"""Settings -> observation by aspect."""


def try_out(
    ways: Iterable[Way], see: See, refusals: tuple[type[Exception], ...] = (UsageError,)
) -> tuple[list[Settings], list[str], str]:
    """Try `ways` until one has an effect, at most TRIES: (settings that could be built, aspects that the last one
    changed, why the last refused one was refused).

    An exception of `refusals` in `see` skips a way. Aspects are compared bit for bit: with a dead key the same
    operations are executed.
    """
    tried: list[Settings] = []
    before: dict[str, Mapping[str, Any]] = {}
    refused = ""
    for held, changes in ways:
        try:
            if repr(held) not in before:
                before[repr(held)] = see(held)
            plain, after = before[repr(held)], see({**held, **changes})
        except refusals as error:
            refused = str(error)
            continue  # a value that does not fit the others
        tried.append({**held, **changes})
        changed = [name for name in plain if not same(plain[name], after[name])]
        if changed or len(tried) == TRIES:
            return tried, changed, refused
    return tried, [], refused


def declaration(tiny: Tiny, key: str) -> tuple[Any, Any]:
    """(type, default) of a dotted arch key; (None, None) if no dataclass declares it."""
    head, _, name = key.rpartition(".")
    schema: Any
    if head == "loss":
        schema = getattr(resolve(value_at(tiny.full_arch, "loss.name") or "", "losses"), "Config", None)
    else:
        schema = getattr(tiny.model_class, "Config", None)
        for part in head.split(".") if head else ():  # a nested block
            kind = typing.get_type_hints(schema).get(part) if schema else None
            schema = next((k for k in (kind, *get_args(kind)) if is_dataclass(k)), None)
    known = declared(schema) if schema else {}
    return (known[name][0], schema.__dataclass_fields__[name].default) if name in known else (None, None)


def candidates(kind: Any, value: Any) -> list[Any]:
    """Other values of a type, those most likely to have an effect first; none for text and lists.

    Integers are also multiplied by 16, as widths are rounded.
    """
    kinds = [part for part in (get_args(kind) if is_union(kind) else (kind,)) if part is not type(None)]
    values: list[Any] = []
    for one in kinds:
        if get_origin(one) is Literal:
            values += [choice for choice in get_args(one) if choice != "auto"]
        elif one is bool:
            values += [True, False]
        elif one in NUMBERS and value is None:
            values += NUMBERS[one]
        elif one is int and isinstance(value, int):
            values += [value + 1, value * 2, value // 2, value * 16, 1, value - 1, value + 2, 0]
        elif one is float and isinstance(value, int | float):
            values += [value / 2, value * 2, value + 0.05, value * 16, value / 1024, 0.5, 0.0]
    return others(value, values)


def others(present: Any, values: Iterable[Any]) -> list[Any]:
    """The values other than `present`, without repeats."""
    different: list[Any] = []
    for value in values:
        different += [value] if value != present and value not in different else []
    return different


def aspects(tiny: Tiny, settings: Settings) -> dict[str, Any]:
    """Observe a short run with some keys replaced: aspect -> value. Raises what building raises."""
    arch = {key.removeprefix("arch."): value for key, value in settings.items() if key.startswith("arch.")}
    run = {"log_interval": 1} | {key: value for key, value in settings.items() if not key.startswith("arch.")}
    plan, config = tiny.build(perturbed=False, run=run, **arch), tiny.config(run, **arch)
    task, module = plan.task, plan.task.module
    batches: list[Any] = []
    lines: list[dict[str, Any]] = []
    draw = task.micro_batches

    def drawn(step: int) -> list[Any]:
        batches.append(list(draw(step)))
        return batches[-1]

    def write(_: int, values: Mapping[str, Any]) -> None:
        lines.append({name: repr(value) for name, value in values.items() if not name.startswith("time/")})

    times = (plan.total_steps, sorted(plan.eval_steps), plan.final_eval, plan.checkpoint_every_eval)
    aspects: dict[str, Any] = {
        "shapes": [(name, str(each.dtype), tuple(each.shape)) for name, each in module.state_dict().items()],
        "schedule": [*times, *map(plan.schedule, (1, 2, max(1, plan.total_steps // 2), plan.total_steps))],
        "optimizer": [(group.name, group.optimizer, group.lr) for group in task.param_groups()],
    }
    task.micro_batches = drawn
    trainer, results = fit(plan, config, write=write)
    first: dict[str, Any] = next((values for values in lines if "train/grad_norm" in values), {})
    return aspects | {
        "data": repr([_plain(batch) for batch in batches]),
        "outputs": {name: value for name, value in first.items() if "norm" not in name},
        "gradient": first.get("train/grad_norm", ""),
        "weights": dict(module.state_dict()),
        "averages": {} if trainer.ema is None else dict(trainer.ema.state_dict()),
        "evaluation": {name: repr(value) for name, value in results.items()},
    }


def observer(tiny: Tiny) -> See:
    """`aspects` of this instance, which observes the unchanged run once, now. Raises what building raises."""
    unchanged = aspects(tiny, {})
    return lambda settings: aspects(tiny, settings) if settings else unchanged


def _plain(value: Any) -> Any:
    """A nested value with its tensors as lists."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
