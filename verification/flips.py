"""Gives every key of a recipe's tiny instance another value and reports what changes; if nothing does, it is dead.

Compared are names and shapes of the weights, data order, schedule and optimizer groups, outputs and gradient of the
first step, the weights after three steps of the real trainer, the averages, and the last evaluation. If none of these
differs, a key of the architecture is also tried with both ways of halting and weights that hide nothing (DYN716).

Only values that are refused (UsageError) are skipped: a value with which the code fails is reported, and so is a key
for which no value could be built and no reason is listed.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from engine.cli.keys import inert_reason
from engine.cli.resolve import observe_script, resolve
from engine.errors import UsageError
from engine.fields import declared, flatten
from engine.registry import ROOT
from verification.probes.changes import See, Way, candidates, declaration, observer, try_out
from verification.probes.instance import Tiny, with_keys
from verification.probes.overrides import effect_of
from verification.probes.session import make_tiny
from verification.recall import recall
from verification.spec import Settings
from verification.static import recipe_command, recipe_script, recipes

REASONS = {
    "eval_seed": "draws which examples a partial evaluation takes, and the tiny instance evaluates all",
    "final_eval_max_augmentations": "cuts augmented copies, which the tiny data have none of",
    "arch.registers": "stands ahead of the cells only where no encoder of demonstrations fills that place",
    "arch.use_gradient_checkpointing": "saves memory, and computes the same",
    "arch.block_size": "bounds the length of texts, and the tiny ones are as long as it was",
    "loss": "the composed config has its weights in arch.loss, whose keys are flipped themselves",
    "prev_run_ckpt": "names what init_from=prev_run takes weights from, and there is no earlier run",
    "checkpoint_*": "names the run that is resumed, and there is no earlier run",
    "load_checkpoint": "names a run to take weights from, and there is no earlier run",
    "load_pretrained_decoder": "names a run to take weights from, and there is no earlier run (DYN715 loads one)",
}
"""Keys (or patterns of keys) whose effect no tiny instance shows, with the reason. The list must stay short."""
UNKNOWN = "no other value is known: name one under `alternatives` in the family's verify.py"


@dataclass(frozen=True)
class Flip:
    """The result for one key: what other values changed, or why it was not tried."""

    key: str
    value: str
    tried: list[str]
    changed: list[str]
    """Aspects that the last value tried has changed."""
    reason: str = ""
    """Why nothing changes, or why it was not flipped."""
    error: str = ""
    """The exception with another value that was not refused."""
    refused: str = ""
    """Why the last refused value was refused."""

    @property
    def dead(self) -> bool:
        return bool(self.tried) and not (self.changed or self.reason or self.error)

    @property
    def untried(self) -> bool:
        """Whether no other value could be built, and no reason is known."""
        return not (self.tried or self.reason or self.error)

    @property
    def faulty(self) -> bool:
        return self.dead or self.untried or bool(self.error)


def tiny_recipe(recipe: Path, data: Path) -> Tiny:
    """The tiny instance of a recipe `config/cfg_*.yaml`; its data are written to `data`, which must not exist.

    Raises:
        UsageError: the recipe is not usable.
        ImportError: it needs a library that is not installed.
    """
    script, *words = recipe_command(ROOT, recipe)
    trace = resolve(ROOT / script, words, root=ROOT)
    assert trace.resolved is not None, trace.problems
    module = observe_script(ROOT / script).module
    assert module is not None
    resolved = {key: value for key, value in trace.resolved.items() if key != "hydra"}
    return make_tiny(module, resolved, data)


def flips_of(recipe: Path, data: Path) -> list[Flip]:
    """The flips of all keys of a recipe, cached until our code changes.

    Raises: UsageError for an unusable recipe; ImportError if it needs a library that is not installed.
    """
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "config").rglob("*.yaml"))]

    def compute() -> list[dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):
            return [asdict(flip) for flip in flips(tiny_recipe(recipe, data))]

    return [Flip(**row) for row in recall(["flips", recipe.stem, *texts], compute)]


def flips(tiny: Tiny) -> Iterator[Flip]:
    """Flip each key in turn, those of the run before those of the architecture."""
    see, known = observer(tiny), tiny.spec.alternatives(tiny.data)
    for key, (value, kind) in keys_of(tiny).items():
        inert, meta = declared_inert(tiny, key, {}), tiny.schema.NOT_IDENTITY.get(key)
        reason = f"not the experiment: {meta}" if meta else inert and f"declared to do nothing here: {inert}"
        ways: list[Way] = [({}, {key: other}) for other in candidates(kind, value)]
        ways += [known[key]] if key in known else []
        yield Flip(key, str(value), [], [], reason) if reason else _flip(tiny, see, key, str(value), ways)


def _flip(tiny: Tiny, see: See, key: str, value: str, ways: Sequence[Way]) -> Flip:
    """Flip one key. `ways`: the other values, in the order in which they are tried."""
    reason, open_ways = "", list[Way]()
    for held, changed_keys in ways:
        why = declared_inert(tiny, key, {**held, **changed_keys})
        reason = f"declared to do nothing with another value: {why}" if why else reason
        open_ways += [] if why else [(held, changed_keys)]
    tried: list[str] = []
    try:
        taken, changed, refused = try_out(open_ways, see)
        for settings in taken:
            others = " and ".join(name for name in settings if name != key)
            tried.append(f"{settings[key]}{others and f' with another {others}'}")
        if tried and not changed and key.startswith("arch.") and tiny.spec.act:
            with contextlib.suppress(UsageError):
                changed = ["halting"] * (not effect_of(tiny, key.removeprefix("arch.")))
    except Exception as error:  # any exception belongs in the report
        return Flip(key, value, tried, [], error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    if changed:
        return Flip(key, value, tried, changed)
    if tried and (key in tiny.spec.pinned or tiny.by_reference(key)):
        reason = "the tiny instance fixes it, or has its value in another block"
    elif tried or not reason:
        reason = next((why for pattern, why in REASONS.items() if fnmatchcase(key, pattern)), "")
    return Flip(key, value, tried, [], reason, refused=refused)


def declared_inert(tiny: Tiny, key: str, changes: Settings) -> str:
    """Why a key has no effect, as its field declares, in the recipe or its tiny instance with `changes`; else ""."""
    for settings, arch in ((tiny.resolved, tiny.full_arch), (tiny.settings, tiny.arch)):
        if why := inert_reason(tiny.schema, key, with_keys({**settings, "arch": arch}, changes)):
            return why
    return ""


def keys_of(tiny: Tiny) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value, type): fields of the schema, of the model's Config and of the loss's."""
    keys = {
        name: (tiny.settings[name], kind)
        for name, (kind, _) in declared(tiny.schema).items()
        if name in tiny.settings and name not in ("arch", "script")
    }
    for key, value in flatten(tiny.arch):
        if isinstance(value, Mapping):
            continue
        kind, _ = declaration(tiny, key)
        if kind is not None and key.rpartition(".")[2] != "name":
            keys[f"arch.{key}"] = value, kind
    return keys


def first_recipes() -> list[Path]:
    """One recipe for each script and architecture, which has the keys of the others."""
    first: dict[tuple[str, str], Path] = {}
    for recipe in sorted(recipes(ROOT), key=lambda path: (len(path.stem), path.stem)):
        arch = re.search(r"^ *- arch: (\S+)", recipe.read_text(encoding="utf-8"), re.MULTILINE)
        first.setdefault((recipe_script(ROOT, recipe), arch[1] if arch else ""), recipe)
    return list(first.values())


def counts(flips: Sequence[Flip]) -> str:
    """A summary of all keys of a recipe in one line."""
    alive, reasons = sum(bool(flip.changed) for flip in flips), sum(bool(flip.reason) for flip in flips)
    dead, untried = sum(flip.dead for flip in flips), sum(flip.untried for flip in flips)
    failing = sum(bool(flip.error) for flip in flips)
    return (
        f"{len(flips)} keys, {alive} change something, {reasons} have a reason not to, {untried} could not be tried, "
        f"{failing} fail, {dead} dead"
    )


def as_table(flips: Sequence[Flip]) -> str:
    """A line for each key: what it changed, or why it did not."""
    width = max(len(f"{flip.key}={flip.value}") for flip in flips if len(flip.value) < 40)
    lines = []
    for flip in flips:
        change = f"{flip.tried[-1]} changes {', '.join(flip.changed)}" if flip.changed else flip.reason
        dead = (
            f"DEAD: {', '.join(flip.tried)} change nothing" if flip.tried else f"NOT TRIED: {flip.refused or UNKNOWN}"
        )
        error = f"FAILS with another value: {flip.error}" if flip.error else ""
        lines.append(f"{f'{flip.key}={flip.value:.40}':<{width}}  {error or change or dead}")
    return "\n".join(lines)
