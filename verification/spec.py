"""What a family of models declares to the verifier: one `Verification` in its tasks/<family>/verify.py.

The engine of verification knows no family. Everything here is data and small functions; what needs torch or numpy
imports it when it is called, so that reading a specification costs nothing at a launch. A field that is left out leaves
out what it is for: a rule or a probe that lacks it is a SKIP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from engine.config import NOT_IDENTITY
from engine.registry import Family
from verification.finding import Level

Settings = dict[str, Any]
EVERY: Settings = {"device": "cpu", "seed": 0, "max_steps": 3, "log_interval": 1000}
"""What every tiny run has; a family pins further keys."""
QUESTIONS = (
    ("Which training mode is intended (embedding vs encoder)?", "data_mode", "mode"),
    ("Which ACT mode (fixed vs dynamic)?", "act_mode", "act"),
    ("Which encoder type?", "encoder_type", "encoder"),
    ("Is this a new experiment or reproducing existing work?", "", "purpose"),
)
"""The guide's four: what is asked, the fact that answers it, the key of an intent that states it."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """A term that is added to the loss of an ACT step by a weight, with keys of the architecture (dotted)."""

    needs: str
    """Block or key without which there is none."""
    weight: str
    metric: str
    """Its sum over the rows, among the metrics."""
    formula: str
    by_hand: Callable[[Mapping[str, float]], float]
    """Sums of the metrics -> what its sum must be, in words `formula`."""
    held: str
    """A part of the output's `aux` that rows keep from their second pass to their third."""
    under: Settings
    """Keys under which all this is so."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """One family."""

    shrink: Callable[[Mapping[str, Any], Path], Settings]
    """(resolved config, data folder) -> settings of the tiny instance: small sizes, a short run, all else kept."""
    full_shape: Callable[[Any], Any]
    """Checked config -> the shape of the unshrunk model, as the family's create_model takes it."""
    write_data: Callable[..., None] | None = None
    """(folder, train=0, test=0): writes a complete tiny data set into the folder, which does not exist yet; `train` and
    `test` seed the split that is trained on and the one that is evaluated, each alone. None: a task draws its rows."""

    splits: bool = True
    """Its data have a split to train on and one to evaluate."""
    act: bool = False
    """Its models think in steps (adaptive computation): forward(batch, carry) with a row-wise halted state."""

    # --- rules (of a `verification.subject.Subject`) ------------------------------------------------------------------
    data: Callable[[Settings, Path, bool], Iterable[Any]] = lambda config, folder, local: ()
    """(config, working directory, whether this machine's data are read) -> the data sets that a config names."""
    reads: str = ""
    """DATA_MODE of its data sets, where it is another one than that of all its models."""
    steps: Callable[[Any], int | None] = lambda subject: None
    """Optimizer steps of the whole run; None where that is unknown."""
    rates: Callable[[Any], Mapping[str, str]] | None = None
    """Groups of parameters that are trained -> the key of their peak learning rate."""
    idle: Level = "FAIL"
    """Level of a command that trains nothing; of a job or a recipe it is always a FAIL."""
    questions: tuple[tuple[str, str, str], ...] = (("Which data?", "data", "data"), QUESTIONS[-1])
    """What a command without an intent is asked, as in QUESTIONS."""
    intents: Mapping[str, str | Callable[[Any], Any]] = field(default_factory=dict)
    """Further keys of `#@ intent:` lines and the key of the config, or the value, that each is compared with."""
    named_values: Mapping[str, str] = field(default_factory=dict)
    """Word of a run name in front of a number -> the key whose value it states."""
    rules: tuple[Any, ...] = ()
    """Its own (`verification.rule.Rule`)."""

    # --- the tiny instance --------------------------------------------------------------------------------------------
    decides: tuple[str, ...] = ()
    """Run keys besides arch that decide what a step computes; the others share one observation (and its verdict)."""
    sized: str = ""
    """What the size of the unshrunk model depends on besides its config."""
    rows: Callable[[int], Settings] = lambda ranks: {}
    """Ranks -> run keys that give the same global batch on one rank and on so many."""
    pinned: Collection[str] = ()
    """Run keys besides EVERY that cannot be observed: `shrink` sets them, or another block has taken their value in."""
    may_be_frozen: Callable[[str], bool] = lambda name: False
    """Parameters, by name, that no optimizer group needs to hold (a frozen base model)."""
    exercised: Settings = field(default_factory=dict)
    """Run keys under which as much of the code as possible runs (evaluators, e.g.)."""
    encoder: str = ""
    """What the names of modules contain that encode rows, besides those that are given whole numbers."""
    table_key: str = ""
    """The key of a row's data that names its row of the sparse table."""
    alternatives: Callable[[Path], Mapping[str, tuple[Settings, Settings]]] = lambda data: {}
    """Data folder -> key -> another value of it, where its type gives none that fits the rest: settings that are held,
    and what is changed beside them, the key and what must change with it. May write further data."""
    others: Callable[[Any], tuple[Any, Any]] | None = None
    """Micro-batch -> (it with other targets, it with other inputs), each of them other; of models without ACT steps."""
    text: Callable[[Any], tuple[Any, Any, Settings]] | None = None
    """Micro-batch -> tokens [..., T], the target at each place, what forward takes besides; of next-token models."""
    terms: tuple[Term, ...] = ()
    """What its losses add to the plain one."""
    probes: Callable[[], Iterable[Any]] = lambda: ()
    """Its own probes (verification.probes.registry.Probe), beside what is common under their codes."""

    def is_encoder(self, module: str) -> bool:
        """Whether a module of this name, or within one of this name, encodes rows."""
        return bool(self.encoder) and self.encoder in module.lower()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pinned", frozenset((*EVERY, *self.pinned)))


def specification(family: Family) -> Verification | None:
    """The `Verification` of a family, None where it has no verify.py."""
    spec: Verification | None = getattr(family.part("verify"), "VERIFICATION", None)
    return spec


def stated_steps(*keys: str) -> Callable[[Any], int | None]:
    """The length of runs whose config states it: the product of these keys, none of a run that only evaluates."""

    def steps(subject: Any) -> int | None:
        config = subject.resolved or {}
        numbers = [value for key in keys if isinstance(value := config.get(key), int)]
        if config.get("eval_only"):
            return 0
        return math.prod(numbers) if len(numbers) == len(keys) else None

    return steps


def smaller(
    resolved: Mapping[str, Any], sizes: Mapping[str, int], pinned: Settings, *, without: Iterable[str] = ()
) -> Settings:
    """Settings of a tiny run: numbers of the arch are at most `sizes` (by name or pattern), EVERY and `pinned` hold,
    keys of the launch and those of `without` are left at their defaults.
    """
    left_out = {*NOT_IDENTITY, "hydra", *without}
    arch = dict(resolved.get("arch") or {})
    for key, value in arch.items():
        limits = [most for pattern, most in sizes.items() if fnmatchcase(key, pattern)]
        if isinstance(value, int) and limits:
            arch[key] = min(value, limits[0])
    arch |= {"forward_dtype": "float32"} if "forward_dtype" in arch else {}
    return {key: value for key, value in resolved.items() if key not in left_out} | EVERY | pinned | {"arch": arch}


def in_proportion(block: Mapping[str, Any], share: float, names: Collection[str]) -> Settings:
    """A block of the architecture, and those within it, with these numbers scaled."""
    scaled = dict(block)
    for key, value in block.items():
        if isinstance(value, Mapping):  # a part with its own width
            scaled[key] = in_proportion(value, share, names)
        elif key in names and isinstance(value, int) and value > 0:
            scaled[key] = max(1, int(value * share))
    return scaled


def depths(arch: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of steps and cycles, which are observed in full (MOD422)."""
    return {key: n for key, n in arch.items() if key.endswith(("_steps", "_cycles")) and type(n) is int}


def shrunk(spec: Verification, resolved: Mapping[str, Any], data: Path, *, narrow: bool) -> Settings:
    """Settings of the tiny instance. `narrow` keeps what decides how a step works, so that many configs share them."""
    settings = spec.shrink(resolved, data)
    kept = {"arch", *spec.pinned, *spec.decides}
    return {key: value for key, value in settings.items() if key in kept} if narrow else settings
