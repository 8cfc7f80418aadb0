"""The losses of a recipe's tiny instance: three steps of the real trainer and an evaluation, line by line.

They change when anything does that a run computes from: data order, initial weights, forward pass, loss, optimizer,
schedule, averages, evaluation. `tests/fixtures/losses/` keeps those of every recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.cli.resolve import observe_script, resolve
from verification.probes.instance import Tiny, fit
from verification.probes.session import make_tiny
from verification.static import recipe_command


def tiny_recipe(recipe: Path, *, root: Path, data: Path) -> Tiny:
    """The tiny instance of a recipe `config/cfg_*.yaml`, its data written to `data`, which does not exist yet.

    Raises:
        UsageError: the recipe is not usable.
        ImportError: it needs a library that is not installed.
    """
    script, *words = recipe_command(root, recipe)
    trace = resolve(root / script, words, root=root)
    assert trace.resolved is not None, trace.problems
    module = observe_script(root / script).module
    assert module is not None
    resolved = {key: value for key, value in trace.resolved.items() if key != "hydra"}
    return make_tiny(module, resolved, data)


def loss_lines(tiny: Tiny) -> list[dict[str, Any]]:
    """What a run of the instance writes to metrics.jsonl, less its times."""
    lines: list[dict[str, Any]] = []

    def write(step: int, values: Mapping[str, Any]) -> None:
        kept = {name: value for name, value in values.items() if not name.startswith("time/") and _is_number(value)}
        lines.append({"step": step, **kept})

    run = {"log_interval": 1}
    fit(tiny.build(stirred=False, run=run), tiny.config(run=run), write=write)
    return lines


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)
