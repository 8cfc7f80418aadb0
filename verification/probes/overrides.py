"""Probe of overrides (DYN716): each arch key given on the command line must change something under a fixed seed.

What counts as something: names, shapes and types of parameters and buffers, the outputs, losses and halts of a few
training steps with a willing and an unwilling halting head, and the answer of an evaluation.
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from torch import Tensor

from engine.cli.source_keys import inert_reason
from engine.errors import UsageError
from engine.registry import resolve
from verification.probes.instance import (
    Recorder,
    Tiny,
    Unobservable,
    batch_of,
    set_halting,
)
from verification.probes.registry import Note, observes
from verification.probes.run_keys import run_notes
from verification.rules.job import parse_overrides
from verification.spec import Settings

CODE = "DYN716"
Trace = list[Any]


def override_keys(overrides: Sequence[str], arch: Settings) -> tuple[list[str], list[str]]:
    """(keys under `arch`, dotted, e.g. `loss.loss_type`; run keys) that a command line sets; names are no values.

    An override of a block counts as one of each of its keys. Raises UsageError for one that Hydra cannot read.
    """
    try:
        parsed = parse_overrides(tuple(overrides))
    except HydraException as error:
        raise UsageError(f"cannot read an override: {' '.join(str(error).split())}") from error
    found: dict[str, None] = {}
    run: dict[str, None] = {}
    for override in parsed:
        key = override.key_or_group
        if override.is_delete():
            continue
        if "." not in key and key != "arch":
            run[key] = None
        if key.startswith("arch."):
            found.update(dict.fromkeys(_leaves(key.removeprefix("arch."), _value(arch, key.removeprefix("arch.")))))
    return [key for key in found if key.rpartition(".")[2] != "name"], list(run)


def _leaves(key: str, value: Any) -> list[str]:
    return [leaf for k, v in value.items() for leaf in _leaves(f"{key}.{k}", v)] if isinstance(value, dict) else [key]


def _value(block: Any, key: str) -> Any:
    for part in key.split("."):
        block = block.get(part) if isinstance(block, dict) else None
    return block


@observes(
    CODE,
    act=True,
    passed="every arch key given on the command line changes the model or what it computes",
    fix="drop the override, or switch on what reads it",
)
def overrides(tiny: Tiny) -> Iterator[str | Note]:
    """Each key set back to its default, then to other values, until something changes; nothing does: it is dead."""
    settings = {**tiny.settings, "arch": tiny.full_arch}
    if unread := [key for key in tiny.unread_keys() if not inert_reason(tiny.launch.schema, key, settings)]:
        yield Note("WARN", f"nothing reads {', '.join(unread)}: a key of the config that does nothing")
    yield from run_notes(tiny)
    if not tiny.overridden:
        yield Note("PASS", "no arch key is overridden on the command line")
        return
    alive = []
    for key in tiny.overridden:
        verdict = _effect(tiny, key)
        if verdict == "alive":
            alive.append(key)
        else:
            yield verdict
    if alive:
        yield Note("PASS", f"observed an effect of {', '.join(f'arch.{key}' for key in alive)}")


def _effect(tiny: Tiny, key: str) -> str | Note:
    """ "alive", the sentence of a fault, or a note about a value that does what the default does."""
    given, present, default = _value(tiny.full_arch, key), _value(tiny.arch, key), _default(tiny, key)
    base: dict[float | None, Trace] = {}
    tried: list[Any] = []
    for value in _candidates(tiny, key, present, default):
        share = _between(key, present, value)
        try:
            other = _trace(tiny, share, {key: value})
        except (UsageError, ValueError):
            continue  # not a value that this architecture takes
        if share not in base:
            base[share] = _trace(tiny, share, {})
        tried.append(value)
        if not _equal(base[share], other):
            if len(tried) > 1 and tried[0] == default and _shapes(tiny) == _shapes(tiny, **{key: default}):
                return Note("INFO", f"arch.{key}={given} computes the same as its default {default}")
            return "alive"
    if not tried:
        return Note("INFO", f"arch.{key}={given}: no other value can be built, so its effect was not observed")
    shown = ", ".join(str(value) for value in tried)
    return f"arch.{key}={given} is dead: {shown} in its place changes no weight, output, loss or halt"


def _shapes(tiny: Tiny, **arch: Any) -> list[Any]:
    """Names and shapes in the unshrunk model: a width that is rounded may differ there though not in the tiny one."""
    return [(name, tuple(value.shape)) for name, value in tiny.full_model(**arch).state_dict().items()]


def _default(tiny: Tiny, key: str) -> Any:
    field = _field(tiny, key)
    return None if field is None else field.default


def _field(tiny: Tiny, key: str) -> Any:
    """The dataclass field behind a dotted arch key: of the model's Config, or of the loss's."""
    schema, rest = _schema(tiny, key)
    return getattr(schema, "__dataclass_fields__", {}).get(rest)


def _schema(tiny: Tiny, key: str) -> tuple[Any, str]:
    """(the dataclass that declares a dotted arch key, its name there)."""
    head, _, rest = key.rpartition(".")
    if head == "loss":
        return getattr(resolve(_value(tiny.full_arch, "loss.name") or "", "losses"), "Config", None), rest
    schema = getattr(tiny.model_class, "Config", None)
    for part in head.split(".") if head else ():  # a block of the model's own
        kind = typing.get_type_hints(schema).get(part) if schema else None
        schema = next((k for k in (kind, *typing.get_args(kind)) if is_dataclass(k)), None)
    return schema, rest


def _candidates(tiny: Tiny, key: str, present: Any, default: Any) -> list[Any]:
    """The default, cut down like the instance itself, and other values near the present one."""
    small = default
    if "." not in key:  # the default, cut down like the instance itself
        small = tiny.spec.shrink({**tiny.resolved, "arch": {**tiny.full_arch, key: default}}, Path())["arch"].get(
            key, default
        )
    values: list[Any] = [small] if small is not None and key != "forward_dtype" else []
    if isinstance(present, bool):
        values.append(not present)
    elif isinstance(present, int):
        values += [present // 2, present * 16, present - 1, present + 1, 0]  # * 16: widths are rounded to 256
    elif isinstance(present, float):
        values += [present / 2, present * 16, 1.0 - present]
    elif isinstance(present, str):
        values += [choice for choice in _choices(tiny, key) if choice != "auto"]
    unique: list[Any] = []
    for value in values:
        if value != present and value not in unique and type(value) in (type(present), float, int):
            unique.append(value)
    return unique


def _choices(tiny: Tiny, key: str) -> tuple[Any, ...]:
    schema, rest = _schema(tiny, key)
    hint = typing.get_type_hints(schema or object).get(rest)
    return typing.get_args(hint)


def _between(key: str, a: Any, b: Any) -> float | None:
    """For a probability: the draw that tells two values apart."""
    if key.rpartition(".")[2] != "halt_exploration_prob":
        return None
    return (a + b) / 2


def _trace(tiny: Tiny, share: float | None, arch: Settings) -> Trace:
    """What an instance with `arch` keys replaced can be told apart by. `share`: exploration draw of half the rows."""
    task = tiny.build(**arch).task
    model, recorder = task.module, Recorder(task.module)
    found: Trace = [(name, value.dtype, tuple(value.shape)) for name, value in model.state_dict().items()]
    each = tiny.max_steps + 1  # steps with each halting head
    for willing, begin in ((True, 1), (False, 1 + each)):
        with contextlib.suppress(Unobservable):  # a model without a halting head
            set_halting(model, willing)
        for number in range(begin, begin + each):
            with torch.no_grad():
                for micro_batch in task.micro_batches(number):
                    batch = batch_of(micro_batch)
                    if share is not None and "exploration" in batch:
                        batch["exploration"][::2, 0] = share
                    found.append(task.loss(micro_batch)[0])
    model.eval()
    with torch.no_grad():
        model(recorder.calls[0].batch)
    for call in recorder.calls:
        output = call.output
        own = [getattr(output, name) for name in output.__dataclass_fields__ if name != "carry"]
        found += [part for value in own for part in (value.values() if isinstance(value, dict) else [value])]
        found += [output.carry.halted, output.carry.steps]
    return found


def _equal(a: Trace, b: Trace) -> bool:
    """Bit for bit: what a dead key leaves alone is computed by the very same operations."""
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            if x.dtype != y.dtype or x.shape != y.shape or not torch.equal(x, y):
                return False
        elif type(x) is not type(y) or (not isinstance(x, Tensor) and x != y):
            return False
    return True


@observes(
    CODE,
    act=False,
    fix="drop the override, or switch on what reads it",
    passed="every arch key is read, and every run key given on the command line changes something that can be observed",
)
def read_keys(tiny: Tiny) -> Iterator[str | Note]:
    """Arch keys that model and loss never read in two steps and an evaluation; run keys that change nothing."""
    settings = {**tiny.settings, "arch": tiny.full_arch}
    for key in [key for key in tiny.unread_keys() if not inert_reason(tiny.launch.schema, key, settings)]:
        if key.removeprefix("arch.") in tiny.overridden:
            yield f"{key} is dead: nothing reads it"
        else:
            yield Note("WARN", f"nothing reads {key}: a key of the config that does nothing")
    yield from run_notes(tiny)
