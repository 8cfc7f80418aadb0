"""Every key of a recipe's tiny instance is given another value: what changes? A key that changes nothing is dead.

Looked at: names and shapes of the weights, data order, schedule and optimizer groups, what the first step computes, its
gradient, the weights after three steps of the real trainer, the averages, and the last evaluation. Where none of these
differs, a key of the architecture has one more chance: both ways of halting, with weights that hide nothing (DYN716).
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.cli.keys import inert_reason
from engine.cli.resolve import observe_script, resolve
from engine.errors import UsageError
from engine.fields import declared, flatten
from verification.probes.changes import TRIES, aspects, candidates, declaration
from verification.probes.instance import Tiny, same, with_keys
from verification.probes.overrides import ALIVE, effect_of
from verification.probes.session import make_tiny
from verification.recall import recall
from verification.static import recipe_command, recipe_script, recipes

REASONS = {
    "eval_seed": "draws which examples a partial evaluation takes, and the tiny instance evaluates all",
    "offline": "decides what is done where data are missing, and the tiny instance has its own",
    "final_eval_max_augmentations": "cuts augmented copies, which the tiny data have none of",
    "arch.registers": "stands ahead of the cells only where no encoder of demonstrations fills that place",
    "arch.use_gradient_checkpointing": "saves memory, and computes the same",
    "arch.block_size": "bounds the length of texts, and the tiny ones are as long as it was",
}
"""Keys that no tiny instance shows to be alive, with the reason. The list must stay short."""


@dataclass(frozen=True)
class Flip:
    """One key: what other values changed, or why it was not tried."""

    key: str
    value: str
    tried: list[str]
    changed: list[str]
    """Aspects that the last value tried has changed; empty where none did."""
    reason: str = ""
    """Why nothing changes, or why there is no other value."""

    @property
    def dead(self) -> bool:
        return not self.changed and not self.reason


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


def flips_of(recipe: Path, *, root: Path, data: Path) -> list[Flip]:
    """All keys of a recipe, remembered for as long as our code stays the same.

    Raises: UsageError for an unusable recipe; ImportError where it needs a library that is not installed.
    """
    texts = [path.read_text(encoding="utf-8") for path in sorted((root / "config").rglob("*.yaml"))]

    def answer() -> list[dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):
            return [asdict(flip) for flip in flips(tiny_recipe(recipe, root=root, data=data))]

    return [Flip(**row) for row in recall(["flips", recipe.stem, *texts], answer)]


def flips(tiny: Tiny) -> Iterator[Flip]:
    """Each key in turn, those of the run before those of the architecture."""
    base = aspects(tiny, {}, {})
    for key, (value, kind) in keys_of(tiny).items():
        reason = reason_of(tiny, key)
        if reason:
            yield Flip(key, str(value), [], [], reason)
            continue
        tried: list[Any] = []
        changed: list[str] = []
        for other in candidates(kind, value):
            if why := declared_inert(tiny, key, other):
                reason = f"declared to do nothing with another value: {why}"
                continue
            run, arch = ({}, {key.removeprefix("arch."): other}) if key.startswith("arch.") else ({key: other}, {})
            try:
                found = aspects(tiny, run, arch)
            except (UsageError, ValueError, RuntimeError, TypeError, AssertionError, KeyError, IndexError):
                continue  # a value that does not fit the others
            tried.append(other)
            changed = [name for name in base if not same(base[name], found[name])]
            if changed or len(tried) == TRIES:
                break
        if tried and not changed and key.startswith("arch.") and tiny.spec.act:
            with contextlib.suppress(UsageError, ValueError, RuntimeError):
                changed = ["halting"] * (effect_of(tiny, key.removeprefix("arch.")) == ALIVE)
        missing = "" if tried else reason or "no other value is known that can be built"
        if tried and not changed and (key in tiny.spec.pinned or tiny.by_reference(key)):
            missing = "the tiny instance fixes it, or has its value in another block"
        if tried and not changed and not missing:
            missing = REASONS.get(key, "")
        yield Flip(key, str(value), [str(one) for one in tried], changed, missing)


def reason_of(tiny: Tiny, key: str) -> str:
    """Why a key is not flipped: launch keys, and keys that their own field declares to do nothing in this config."""
    schema = tiny.schema
    if key in schema.NOT_IDENTITY:
        return f"not the experiment: {schema.NOT_IDENTITY[key]}"
    if why := declared_inert(tiny, key):
        return f"declared to do nothing here: {why}"
    return ""


def declared_inert(tiny: Tiny, key: str, *other: Any) -> str:
    """Why a key has no effect, as its field declares, in the recipe or its tiny instance; with `other` as its value."""
    for settings, arch in ((tiny.resolved, tiny.full_arch), (tiny.settings, tiny.arch)):
        changed = with_keys({**settings, "arch": arch}, dict.fromkeys([key] * len(other), *other))
        if why := inert_reason(tiny.schema, key, changed):
            return why
    return ""


def keys_of(tiny: Tiny) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (present value, type): fields of the schema, of the model's Config and of the loss's."""
    found = {
        name: (tiny.settings[name], kind)
        for name, (kind, _) in declared(tiny.schema).items()
        if name in tiny.settings and name not in ("arch", "script")
    }
    for key, value in flatten(tiny.arch):
        if isinstance(value, Mapping):
            continue
        kind, _ = declaration(tiny, key)
        if kind is not None and key.rpartition(".")[2] != "name":
            found[f"arch.{key}"] = value, kind
    return found


def first_recipes(root: Path) -> list[Path]:
    """One recipe for each script and class of models: their keys are those of the others."""
    found: dict[tuple[str, str], Path] = {}
    for recipe in sorted(recipes(root), key=lambda path: (len(path.stem), path.stem)):
        arch = re.search(r"^ *- arch: (\S+)", recipe.read_text(encoding="utf-8"), re.MULTILINE)
        found.setdefault((recipe_script(root, recipe), arch[1] if arch else ""), recipe)
    return list(found.values())


def as_table(flips: Sequence[Flip]) -> str:
    """A line for each key: what it changed, or why it did not."""
    width = max(len(f"{flip.key}={flip.value}") for flip in flips if len(flip.value) < 40)
    lines = []
    for flip in flips:
        change = f"{flip.tried[-1]} changes {', '.join(flip.changed)}" if flip.changed else flip.reason
        dead = f"DEAD: {', '.join(map(str, flip.tried))} change nothing"
        lines.append(f"{f'{flip.key}={flip.value:.40}':<{width}}  {change or dead}")
    return "\n".join(lines)
