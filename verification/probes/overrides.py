"""Probe of overrides (DYN716): each key given on the command line must change something under a fixed seed.

What counts as something, for a key of the architecture: names, shapes and types of parameters and buffers, the outputs,
losses and halts of a few training steps with a willing and an unwilling halting head, and the answer of an evaluation.
For a key of the run: what three steps of the real trainer leave.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException

from engine.cli.keys import inert_reason
from engine.config import NOT_IDENTITY
from engine.errors import UsageError
from engine.fields import declared, value_at
from verification.probes.changes import TRIES, aspects, candidates, declaration
from verification.probes.instance import (
    Recorder,
    Tiny,
    Unobservable,
    batch_of,
    same,
    set_halting,
)
from verification.probes.outputs import tensors_of
from verification.probes.registry import Note, observes
from verification.rules.job import parse_overrides
from verification.spec import Settings

CODE, FIX = "DYN716", "drop the override, or switch on what reads it"
ALIVE = "alive"
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
            found.update(dict.fromkeys(_leaves(key.removeprefix("arch."), value_at(arch, key.removeprefix("arch.")))))
    return [key for key in found if key.rpartition(".")[2] != "name"], list(run)


def _leaves(key: str, value: Any) -> list[str]:
    return [leaf for k, v in value.items() for leaf in _leaves(f"{key}.{k}", v)] if isinstance(value, dict) else [key]


@observes(
    CODE,
    act=True,
    passed="every arch key given on the command line changes the model or what it computes",
    fix=FIX,
)
def overrides(tiny: Tiny) -> Iterator[str | Note]:
    """Each key set back to its default, then to other values, until something changes; nothing does: it is dead."""
    yield from (_unread(key) for key in _unread_keys(tiny))
    yield from _run_notes(tiny)
    if not tiny.overridden:
        yield Note("PASS", "no arch key is overridden on the command line")
        return
    verdicts = {key: effect_of(tiny, key) for key in tiny.overridden}
    yield from (verdict for verdict in verdicts.values() if verdict != ALIVE)
    if alive := [f"arch.{key}" for key, verdict in verdicts.items() if verdict == ALIVE]:
        yield Note("PASS", f"observed an effect of {', '.join(alive)}")


@observes(
    CODE,
    act=False,
    passed="every arch key is read, and every run key given on the command line changes something that can be observed",
    fix=FIX,
)
def read_keys(tiny: Tiny) -> Iterator[str | Note]:
    """Arch keys that model and loss never read in two steps and an evaluation; run keys that change nothing."""
    for key in _unread_keys(tiny):
        yield f"{key} is dead: nothing reads it" if key.removeprefix("arch.") in tiny.overridden else _unread(key)
    yield from _run_notes(tiny)


def _unread_keys(tiny: Tiny) -> list[str]:
    settings = {**tiny.settings, "arch": tiny.full_arch}
    return [key for key in tiny.unread_keys() if not inert_reason(tiny.launch.schema, key, settings)]


def _unread(key: str) -> Note:
    return Note("WARN", f"nothing reads {key}: a key of the config that does nothing")


def _tried(values: Iterable[Any], traces: Callable[[Any], tuple[Any, Any]]) -> tuple[list[Any], bool]:
    """(the values that can be built, up to the first with an effect, at most TRIES; whether there is one).

    `traces`: a value -> what is seen without and with it, bit for bit: what a dead key leaves alone is computed by the
    very same operations.
    """
    tried: list[Any] = []
    for value in values:
        try:
            before, after = traces(value)
        except (UsageError, ValueError):
            continue  # not a value that is taken here
        tried.append(value)
        if not same(before, after) or len(tried) == TRIES:
            return tried, not same(before, after)
    return tried, False


def _others(present: Any, *values: Any) -> list[Any]:
    """The values that are not the present one, each once."""
    others = [value for value in values if value != present]
    return [value for number, value in enumerate(others) if value not in others[:number]]


# --- keys of the architecture -----------------------------------------------------------------------------------------


def effect_of(tiny: Tiny, key: str) -> str | Note:
    """ALIVE, the sentence of a fault, or a note about a value that does what the default does."""
    (kind, default), given, present = declaration(tiny, key), value_at(tiny.full_arch, key), value_at(tiny.arch, key)
    base = functools.cache(lambda share: _trace(tiny, share, {}))

    def traces(value: Any) -> tuple[Trace, Trace]:
        share = _between(key, present, value)
        other = _trace(tiny, share, {key: value})
        return base(share), other

    tried, alive = _tried(_candidates(tiny, key, kind, present, default), traces)
    if alive:
        if len(tried) > 1 and tried[0] == default and _shapes(tiny) == _shapes(tiny, **{key: default}):
            return Note("INFO", f"arch.{key}={given} computes the same as its default {default}")
        return ALIVE
    if not tried:
        return Note("INFO", f"arch.{key}={given}: no other value can be built, so its effect was not observed")
    shown = ", ".join(str(value) for value in tried)
    return f"arch.{key}={given} is dead: {shown} in its place changes no weight, output, loss or halt"


def _shapes(tiny: Tiny, **arch: Any) -> list[Any]:
    """Names and shapes in the unshrunk model: a width that is rounded may differ there though not in the tiny one."""
    return [(name, tuple(value.shape)) for name, value in tiny.full_model(**arch).state_dict().items()]


def _candidates(tiny: Tiny, key: str, kind: Any, present: Any, default: Any) -> list[Any]:
    """The default, cut down like the instance itself, and other values of the key's type."""
    small = default
    if "." not in key:
        small = tiny.spec.shrink({**tiny.resolved, "arch": {**tiny.full_arch, key: default}}, Path())["arch"].get(
            key, default
        )
    first = [small] if type(small) in (type(present), float, int) and key != "forward_dtype" else []
    return _others(present, *first, *candidates(kind, present))


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
    found += [tensors_of(call.output) for call in recorder.calls]
    return found


# --- keys of the run --------------------------------------------------------------------------------------------------


def _run_notes(tiny: Tiny) -> Iterator[Note]:
    """A warning for each run key (lr=..., ema_rate=...) whose other values leave a short run bit for bit what it was.

    No more than a warning: a few steps of a tiny instance may be too few for a key to show. Launch keys, and those that
    shrinking pins (data, batch, lengths), are not observed.
    """
    base = functools.cache(lambda: aspects(tiny, {}, {}))

    def seen(key: str, value: Any) -> tuple[Any, Any]:
        return base(), aspects(tiny, {key: value}, {})

    for key in tiny.overridden_run:
        if key in NOT_IDENTITY or key in tiny.spec.pinned or key not in tiny.settings or tiny.by_reference(key):
            continue
        present, field = tiny.settings[key], tiny.schema.__dataclass_fields__.get(key)
        first = [field.default] if field and isinstance(field.default, bool | int | float | str | None) else []
        values = _others(present, *first, *candidates(declared(tiny.schema)[key][0], present))
        tried, alive = _tried(values, functools.partial(seen, key))
        if tried and not alive:
            shown = ", ".join(map(str, tried))
            yield Note("WARN", f"{key}={present}: {shown} in its place changes nothing in 3 optimizer steps")
