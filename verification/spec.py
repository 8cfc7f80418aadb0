"""What a family of models declares to the verifier: a `Verification` in its tasks/<family>/verify.py.

The verifier itself knows no family. Everything here is data and small functions, which import torch or numpy only when
they are called, so that reading a specification costs nothing at a launch. A rule or probe for which a family declares
nothing is a SKIP.
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
"""Settings of every tiny run; a family pins further keys."""
QUESTIONS = (
    ("Which training mode is intended (embedding vs encoder)?", "data_mode", "mode"),
    ("Which ACT mode (fixed vs dynamic)?", "act_mode", "act"),
    ("Which encoder type?", "encoder_type", "encoder"),
    ("Is this a new experiment or reproducing existing work?", "", "purpose"),
)
"""The guide's four: (question, fact that answers it, key of the intent that states it)."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """A weighted term of the loss of an ACT step; keys of the architecture are dotted."""

    needs: str
    """Block or key without which the term does not exist."""
    weight: str
    """Key of its weight."""
    metric: str
    """The metric with its sum over the rows."""
    formula: str
    by_hand: Callable[[Mapping[str, float]], float]
    """Sums of the metrics -> the expected sum of the term, which `formula` describes."""
    held: str
    """Entry of the output's `aux` that rows keep from their second pass to their third."""
    under: Settings
    """Settings under which this holds."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The declaration of one family."""

    shrink: Callable[[Mapping[str, Any], Path], Settings]
    """(resolved config, data folder) -> settings of the tiny instance: small sizes, a short run, all else unchanged."""
    full_shape: Callable[[Any], Any]
    """Checked config -> shape of the full-size model, as the family's create_model takes it."""
    write_data: Callable[..., None] | None = None
    """(folder, train=0, test=0): writes a complete tiny data set into the folder, which must not exist; `train` and
    `test` are separate seeds of the training and the evaluation split. None: a task draws its rows."""

    splits: bool = True
    """Whether its data have a training and an evaluation split."""
    act: bool = False
    """Whether its models use adaptive computation: forward(batch, carry) with a row-wise halted state."""

    # --- rules (of a `verification.subject.Subject`) ------------------------------------------------------------------
    data: Callable[[Settings, Path, bool], Iterable[Any]] = lambda config, folder, local: ()
    """(config, working directory, whether this machine's data are read) -> the data sets of a config."""
    reads: str = ""
    """DATA_MODE of its data sets, if it differs from that of its models."""
    steps: Callable[[Any], int | None] = lambda subject: None
    """Optimizer steps of the whole run; None if unknown."""
    rates: Callable[[Any], Mapping[str, str]] | None = None
    """Trained parameter groups -> key of their peak learning rate."""
    idle: Level = "FAIL"
    """Level of a command that trains nothing; for a job or a recipe it is always FAIL."""
    questions: tuple[tuple[str, str, str], ...] = (("Which data?", "data", "data"), QUESTIONS[-1])
    """Questions to a command without an intent, as in QUESTIONS."""
    intents: Mapping[str, str | Callable[[Any], Any]] = field(default_factory=dict)
    """Further keys of `#@ intent:` lines -> key of the config, or function of the subject, for the actual value."""
    named_values: Mapping[str, str] = field(default_factory=dict)
    """Word before a number in a run name -> key whose value it states."""
    rules: tuple[Any, ...] = ()
    """Its own rules (`verification.rule.Rule`)."""

    # --- the tiny instance --------------------------------------------------------------------------------------------
    decides: tuple[str, ...] = ()
    """Run keys other than arch on which a step's computation depends; configs that agree in them share a verdict."""
    sized: str = ""
    """What the size of the full-size model depends on in addition to its config."""
    rows: Callable[[int], Settings] = lambda ranks: {}
    """Ranks -> run keys with which one rank and that many have the same global batch."""
    pinned: Collection[str] = ()
    """Run keys other than EVERY that cannot be observed: `shrink` sets them, or another block refers to them."""
    may_be_frozen: Callable[[str], bool] = lambda name: False
    """Whether a parameter, by name, may be in no optimizer group (a frozen base model)."""
    exercised: Settings = field(default_factory=dict)
    """Run keys with which as much of the code as possible runs (evaluators, for example)."""
    encoder: str = ""
    """Part of the names of modules that encode rows, in addition to modules with integer inputs."""
    table_key: str = ""
    """Key of a row's data with its index in the sparse embedding table."""
    alternatives: Callable[[Path], Mapping[str, tuple[Settings, Settings]]] = lambda data: {}
    """Data folder -> key -> (settings held in both runs, settings that change: the key and what must change with it),
    for keys whose type gives no other value that fits. May write further data."""
    others: Callable[[Any], tuple[Any, Any]] | None = None
    """Micro-batch -> (the same with other targets, the same with other inputs); for models without ACT steps."""
    text: Callable[[Any], tuple[Any, Any, Settings]] | None = None
    """Micro-batch -> (tokens [..., T], target of each position, other arguments of forward); for next-token models."""
    terms: tuple[Term, ...] = ()
    """Further terms of its losses."""
    probes: Callable[[], Iterable[Any]] = lambda: ()
    """Its own probes (verification.probes.registry.Probe), in addition to the common ones of the same codes."""

    def is_encoder(self, module: str) -> bool:
        """Whether the module of this name encodes rows."""
        return bool(self.encoder) and self.encoder in module.lower()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pinned", frozenset((*EVERY, *self.pinned)))


def specification(family: Family) -> Verification | None:
    """The `Verification` of a family; None if it has no verify.py."""
    spec: Verification | None = getattr(family.part("verify"), "VERIFICATION", None)
    return spec


def stated_steps(*keys: str) -> Callable[[Any], int | None]:
    """A `steps` function for runs whose config states their length: the product of the keys; 0 with eval_only."""

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
    """Settings of a tiny run: integers of the arch limited to `sizes` (by name or pattern), EVERY and `pinned` applied,
    keys of the launch and of `without` left at their defaults.
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
    """A block of the architecture with the integers of `names`, also in nested blocks, scaled by `share`."""
    scaled = dict(block)
    for key, value in block.items():
        if isinstance(value, Mapping):  # a part with its own width
            scaled[key] = in_proportion(value, share, names)
        elif key in names and isinstance(value, int) and value > 0:
            scaled[key] = max(1, int(value * share))
    return scaled


def depths(arch: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of steps and cycles, which are observed unshrunk (MOD422)."""
    return {key: n for key, n in arch.items() if key.endswith(("_steps", "_cycles")) and type(n) is int}


def shrunk(spec: Verification, resolved: Mapping[str, Any], data: Path, *, narrow: bool) -> Settings:
    """Settings of the tiny instance. `narrow` keeps only what a step's computation depends on, so that configs share
    them."""
    settings = spec.shrink(resolved, data)
    kept = {"arch", *spec.pinned, *spec.decides}
    return {key: value for key, value in settings.items() if key in kept} if narrow else settings
