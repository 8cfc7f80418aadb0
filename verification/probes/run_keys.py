"""Part of DYN716: run keys given on the command line (lr=..., ema_rate=...) that change nothing in a short run.

Only a warning: a few steps of a tiny instance may be too few for a key to show. Keys that shrinking pins (data, batch,
lengths) and launch keys are not observed.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.config import NOT_IDENTITY
from engine.errors import UsageError
from verification.probes.instance import NoStop, Tiny, runtime
from verification.probes.registry import Note

Trace = list[Any]


def run_notes(tiny: Tiny) -> list[Note]:
    """A warning for each observed key whose other values leave a run bit for bit what it was."""
    notes = []
    base: Trace | None = None
    for key in tiny.overridden_run:
        if key in NOT_IDENTITY or key in tiny.spec.pinned or key not in tiny.settings:
            continue
        base = _trace(tiny, {}) if base is None else base
        tried = []
        for value in _others(tiny, key):
            try:
                other = _trace(tiny, {key: value})
            except (UsageError, ValueError):
                continue  # not a value that the script takes
            tried.append(value)
            if other != base:
                break
        else:
            if tried:
                shown = ", ".join(map(str, tried))
                notes.append(
                    Note(
                        "WARN", f"{key}={tiny.settings[key]}: {shown} in its place changes nothing in 3 optimizer steps"
                    )
                )
    return notes


def _others(tiny: Tiny, key: str) -> list[Any]:
    """The default of the script's schema, then values near the present one."""
    present = tiny.settings[key]
    field = tiny.schema.__dataclass_fields__.get(key)
    values = [] if field is None or not isinstance(field.default, bool | int | float | str | None) else [field.default]
    if isinstance(present, bool):
        values.append(not present)
    elif isinstance(present, int | float):
        values += [present / 1024, present / 2, present + 0.05]
    return [value for number, value in enumerate(values) if value != present and value not in values[:number]]


def _trace(tiny: Tiny, changes: dict[str, Any]) -> Trace:
    """Everything that a short run of the real trainer leaves, as plain comparable values."""
    from engine.loop.trainer import Trainer

    config = tiny.config(run=changes)
    plan = tiny.build(stirred=False, run=changes)
    trainer = Trainer(
        plan,
        config,
        runtime(config.seed),
        save=lambda *_: None,
        write=lambda *_: None,
        stop=NoStop(),  # type: ignore[arg-type]
    )
    results = trainer.fit()
    weights = {**plan.task.module.state_dict(), **{f"ema.{n}": v for n, v in _averages(trainer).items()}}
    return [
        [plan.schedule(step) for step in (1, 2, plan.total_steps // 2, plan.total_steps)],
        [(group.name, group.optimizer, group.lr) for group in plan.task.param_groups()],
        (plan.total_steps, sorted(plan.eval_steps), plan.final_eval, plan.checkpoint_every_eval),
        {name: repr(value) for name, value in results.items()},
        {name: value.detach().to(torch.float64).numpy().tobytes() for name, value in weights.items()},
    ]


def _averages(trainer: Any) -> dict[str, torch.Tensor]:
    return {} if trainer.ema is None else dict(trainer.ema.state_dict())
