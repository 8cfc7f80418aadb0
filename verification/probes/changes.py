"""What another value of a config key changes: which values there are, and what a short run can be told apart by."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin

import torch

from engine.cli.keys import is_union
from engine.fields import declared, value_at
from engine.registry import resolve
from verification.probes.instance import Tiny, fit, groups_of, schedule_of
from verification.spec import Settings

TRIES = 6
"""Other values that are tried before a key is called dead."""
NUMBERS = {int: (1, 2, 0), float: (0.5, 0.01, 2.0)}
"""What is tried where the present value is null; of a number its 16th multiple, too: widths are rounded."""


def declaration(tiny: Tiny, key: str) -> tuple[Any, Any]:
    """(type, default) of a dotted arch key, None for what no dataclass declares."""
    schema, name = schema_of(tiny, key)
    known = declared(schema) if schema else {}
    return (known[name][0], schema.__dataclass_fields__[name].default) if name in known else (None, None)


def schema_of(tiny: Tiny, key: str) -> tuple[Any, str]:
    """(the dataclass that declares a dotted arch key, its name there)."""
    head, _, rest = key.rpartition(".")
    if head == "loss":
        return getattr(resolve(value_at(tiny.full_arch, "loss.name") or "", "losses"), "Config", None), rest
    schema = getattr(tiny.model_class, "Config", None)
    for part in head.split(".") if head else ():  # a block of the model's own
        kind = typing.get_type_hints(schema).get(part) if schema else None
        schema = next((k for k in (kind, *typing.get_args(kind)) if is_dataclass(k)), None)
    return schema, rest


def candidates(kind: Any, value: Any) -> list[Any]:
    """Other values of a type, the most telling first; none for text and lists, whose meaning nobody can guess."""
    kinds = [part for part in (get_args(kind) if is_union(kind) else (kind,)) if part is not type(None)]
    found: list[Any] = []
    for one in kinds:
        if get_origin(one) is Literal:
            found += [choice for choice in get_args(one) if choice != "auto"]
        elif one is bool:
            found += [True, False]
        elif one in NUMBERS and value is None:
            found += NUMBERS[one]
        elif one is int and isinstance(value, int):
            found += [value + 1, value * 2, value // 2, value * 16, 1, value - 1, value + 2, 0]
        elif one is float and isinstance(value, int | float):
            found += [value / 2, value * 2, value + 0.05, value * 16, value / 1024, 0.5, 0.0]
    return [other for number, other in enumerate(found) if other != value and other not in found[:number]]


def aspects(tiny: Tiny, run: Settings, arch: Settings) -> dict[str, Any]:
    """What a short run with some keys replaced can be told apart by, aspect by aspect. Raises what building raises."""
    run = {"log_interval": 1, **run}
    plan, config = tiny.build(stirred=False, run=run, **arch), tiny.config(run, **arch)
    task, module = plan.task, plan.task.module
    batches: list[Any] = []
    lines: list[tuple[int, dict[str, Any]]] = []
    draw = task.micro_batches

    def drawn(step: int) -> list[Any]:
        batches.append(list(draw(step)))
        return batches[-1]

    def write(step: int, values: Mapping[str, Any]) -> None:
        lines.append((step, {name: repr(value) for name, value in values.items() if not name.startswith("time/")}))

    found: dict[str, Any] = {
        "shapes": [(name, str(each.dtype), tuple(each.shape)) for name, each in module.state_dict().items()],
        "schedule": schedule_of(plan),
        "optimizer": groups_of(plan),
    }
    task.micro_batches = drawn
    trainer, results = fit(plan, config, write=write)
    training = [values for _, values in lines if "train/grad_norm" in values]
    return found | {
        "data": repr([_plain(batch) for batch in batches]),
        "outputs": {name: value for name, value in training[0].items() if "norm" not in name} if training else {},
        "gradient": training[0]["train/grad_norm"] if training else "",
        "weights": dict(module.state_dict()),
        "averages": {} if trainer.ema is None else dict(trainer.ema.state_dict()),
        "evaluation": {name: repr(value) for name, value in results.items()},
    }


def _plain(value: Any) -> Any:
    """Tensors of a nest as lists."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
