"""Probe of overrides (DYN716): with a fixed seed, each key on the command line must change something.

For a key of the architecture that is: names, shapes and types of parameters and buffers; outputs, losses and halts of a
few training steps with a halting head that always and one that never halts; or the answer of an evaluation. For a key
of the run: the result of three steps of the real trainer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException

from engine.cli.keys import inert_reason
from engine.config import NOT_IDENTITY
from engine.errors import UsageError
from engine.fields import declared, flatten, value_at
from launcher.naming import parse_overrides
from verification.probes.changes import See, Way, candidates, declaration, observer, others, try_out
from verification.probes.instance import Recorder, Tiny, Unobservable, batch_of, set_halting
from verification.probes.outputs import tensors_of
from verification.probes.reads import unread_keys
from verification.probes.registry import Note, probe
from verification.spec import Settings

DRAW = "exploration draw"


def override_keys(overrides: Sequence[str], arch: Settings) -> tuple[list[str], list[str]]:
    """(keys under `arch`, dotted, e.g. `loss.loss_type`; run keys) that a command line sets, without `name` keys.

    An override of a block counts as one of each of its keys. Raises: UsageError for one that Hydra cannot read.
    """
    try:
        parsed = parse_overrides(overrides)
    except HydraException as error:
        raise UsageError(f"cannot read an override: {' '.join(str(error).split())}") from error
    overridden = [str(one.key_or_group) for one in parsed if not one.is_delete()]
    keys: dict[str, None] = {}
    for key in (key.removeprefix("arch.") for key in overridden if key.startswith("arch.")):
        value = value_at(arch, key)
        leaves = [key]
        if isinstance(value, dict):
            leaves = [f"{key}.{name}" for name, item in flatten(value) if not isinstance(item, dict)]
        keys |= dict.fromkeys(leaves)
    run = [key for key in overridden if "." not in key and key != "arch"]
    return [key for key in keys if key.rpartition(".")[2] != "name"], list(dict.fromkeys(run))


@probe("DYN716")
def overrides(tiny: Tiny) -> Iterator[str | Note]:
    """Report keys that nothing reads. Each overridden key is set to its default, then to other values, until something
    changes; if nothing does, it is dead. In models without ACT steps, keys of the architecture must only be read.
    """
    settings = {**tiny.settings, "arch": tiny.full_arch}
    for key in unread_keys(tiny):
        if key.startswith("arch.") and not inert_reason(tiny.launch.schema, key, settings):
            overridden = key.removeprefix("arch.") in tiny.overridden and not tiny.spec.act
            text = f"nothing reads {key}: a key of the config that does nothing"
            yield Note("WARN", text) if not overridden else f"{key} is dead: nothing reads it"
    yield from _run_notes(tiny)
    verdicts = {f"arch.{key}": effect_of(tiny, key) for key in tiny.overridden if tiny.spec.act}
    yield from (verdict for verdict in verdicts.values() if verdict)
    if alive := [key for key, verdict in verdicts.items() if not verdict]:
        yield Note("PASS", f"observed an effect of {', '.join(alive)}")


def effect_of(tiny: Tiny, key: str) -> str | Note:
    """Observe the effect of an arch key: "" if it has one, else a fault, or a note if it acts as the default does."""
    (kind, default), full, present = declaration(tiny, key), value_at(tiny.full_arch, key), value_at(tiny.arch, key)
    ways = list[Way]()
    for value in others(present, [*_small_default(tiny, key, present, default), *candidates(kind, present)]):
        # a draw between two probabilities distinguishes them
        held = {DRAW: (present + value) / 2} if key.rpartition(".")[2] == "halt_exploration_prob" else {}
        ways.append((held, {f"arch.{key}": value}))
    tried, changed, _ = try_out(ways, lambda settings: {"all": _trace(tiny, settings)}, (UsageError, ValueError))
    values = [settings[f"arch.{key}"] for settings in tried]
    if not tried:
        return Note("INFO", f"arch.{key}={full}: no other value can be built, so its effect was not observed")
    if not changed:
        shown = ", ".join(map(str, values))
        return f"arch.{key}={full} is dead: {shown} in its place changes no weight, output, loss or halt"
    if len(values) > 1 and values[0] == default and _shapes(tiny) == _shapes(tiny, **{key: default}):
        return Note("INFO", f"arch.{key}={full} computes the same as its default {default}")
    return ""


def _shapes(tiny: Tiny, **arch: Any) -> list[Any]:
    """Names and shapes in the full-size model: rounded widths may differ there though not in the tiny one."""
    return [(name, tuple(value.shape)) for name, value in tiny.full_model(**arch).state_dict().items()]


def _small_default(tiny: Tiny, key: str, present: Any, default: Any) -> list[Any]:
    """The default, shrunk like the instance itself."""
    if "." not in key:
        arch = tiny.spec.shrink({**tiny.resolved, "arch": {**tiny.full_arch, key: default}}, Path())["arch"]
        default = arch.get(key, default)
    return [default] if type(default) in (type(present), float, int) and key != "forward_dtype" else []


def _trace(tiny: Tiny, settings: Settings) -> list[Any]:
    """The observations of an instance with some keys replaced; DRAW sets the exploration draw of half of the rows."""
    share = settings.get(DRAW)
    task = tiny.build(**{key.removeprefix("arch."): value for key, value in settings.items() if key != DRAW}).task
    model, recorder = task.module, Recorder(task.module)
    trace: list[Any] = [(name, value.dtype, tuple(value.shape)) for name, value in model.state_dict().items()]
    each = tiny.max_steps + 1  # steps with each halting head
    for halt, begin in ((True, 1), (False, 1 + each)):
        with contextlib.suppress(Unobservable):  # a model without a halting head
            set_halting(model, halt)
        for number in range(begin, begin + each):
            with torch.no_grad():
                for micro_batch in task.micro_batches(number):
                    batch = batch_of(micro_batch)
                    if share is not None and "exploration" in batch:
                        batch["exploration"][::2, 0] = share
                    trace.append(task.loss(micro_batch)[0])
    model.eval()
    with torch.no_grad():
        model(recorder.calls[0].batch)
    return trace + [tensors_of(call.output) for call in recorder.calls]


def _run_notes(tiny: Tiny) -> Iterator[Note]:
    """A warning for each run key (lr=..., ema_rate=...) whose other values do not change a short run at all.

    It is only a warning: a few steps of a tiny instance may be too few to show an effect. Launch keys, and those that
    shrinking pins (data, batch, lengths), are not observed.
    """
    see: See | None = None
    for key in tiny.overridden_run:
        if key in NOT_IDENTITY or key in tiny.spec.pinned or key not in tiny.settings or tiny.by_reference(key):
            continue
        see = see or observer(tiny)
        present, default = tiny.settings[key], tiny.schema.__dataclass_fields__[key].default
        first = [default] if isinstance(default, bool | int | float | str | None) else []
        values = others(present, [*first, *candidates(declared(tiny.schema)[key][0], present)])
        ways: list[Way] = [({}, {key: value}) for value in values]
        tried, changed, _ = try_out(ways, see, (UsageError, ValueError))
        if tried and not changed:
            shown = ", ".join(str(settings[key]) for settings in tried)
            yield Note("WARN", f"{key}={present}: {shown} in its place changes nothing in 3 optimizer steps")
