"""Resolves the names that a config or a file may contain: `module@Class` in five packages, and the entry scripts.

A checkpoint, a stored config or a recipe may come from anywhere, so a name in them never imports anything but a module
of this project: a package of the same name in the working directory or elsewhere on sys.path is refused (SECURITY.md).
Each entry script has a `Family`, the only object through which the rest of the project uses a folder of tasks/.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.cli.translate import Groups
from engine.config import RunConfig
from engine.errors import UsageError
from engine.io import did_you_mean
from engine.schema import structure

SLOTS = ("models", "losses", "evaluators", "dataset", "tasks")
CONTRACTS = {"models": ("forward",), "losses": ("forward",), "evaluators": ("begin", "update", "result")}
"""Methods that a class of a slot must have: a class without them is a helper of its module."""
FAMILIES = {
    "pretrain": "recursive_reasoning",
    "pretrain_etrm": "etrm",
    "train": "language_model",
    "train_animal": "animal",
    **dict.fromkeys(("feedforward_train", "feedbackward_alt_train", "feedbackward_rec_alt_train"), "feedback"),
}
"""Entry script -> its folder in tasks/. The `entry` of a checkpoint and the `script` of a stored config must be one of
these."""
ROOT = Path(__file__).resolve().parents[1]


Rewrite = Callable[[list[str], Groups, dict[str, str]], list[str]]
"""(words of the command line in Hydra's style, config groups, key -> its spelling in the command) -> words."""


@dataclass(frozen=True)
class Arch:
    """The classes that an `arch` block names, and their checked configs (None if a class has none)."""

    model_class: type
    model_config: Any
    loss_class: type
    loss_config: Any


@dataclass(frozen=True, kw_only=True)
class Family:
    """A folder of tasks/ as used by one entry script: `FAMILY` in its family.py, or several under other names. Creating
    one does not import torch; build.py and other modules are imported by the first method that needs them.

    build.py has `check(config)`, `create_model(config, shape, runtime)` and `build(config, runtime, create_model)`.
    """

    entry: str
    """The entry script's name without .py, as stored in a checkpoint's manifest."""
    package: str
    """The folder as a package, `tasks.<name>`."""
    config_name: str
    """The recipe that the script's @hydra.main names."""
    schema: type[RunConfig]
    requires: Mapping[str, str]
    """Class variables that a model class must have: FAMILY, DATA_MODE, ..."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Documented key names -> keys of the schema."""
    rewrite: Rewrite | None = None
    """Rewrites documented values that mean another key."""
    data_folders: Callable[[Mapping[str, Any]], list[str]] = lambda config: []
    """The folders of data that a stored config names."""

    def part(self, name: str) -> ModuleType | None:
        """The module `name` of the folder (build, evaluate, verify, ...), imported now; None if there is none."""
        if importlib.util.find_spec(f"{self.package}.{name}") is None:
            return None
        return importlib.import_module(f"{self.package}.{name}")

    def function(self, part: str, name: str) -> Callable[..., Any] | None:
        """The function `name` of a module of the folder; None if there is none."""
        return getattr(self.part(part), name, None)

    @property
    def _build(self) -> ModuleType:
        return importlib.import_module(f"{self.package}.build")

    def read_arch(self, config: Any) -> Arch:
        """The classes that the block `config.arch` names, with their configs.

        Raises: UsageError for an unknown name or key, or an architecture of another family of models.
        """
        hyper = dict(config.arch)
        loss = hyper.pop("loss", None) or {}
        if not isinstance(loss, Mapping):
            raise UsageError(f"arch.loss: expected a block of keys, got {loss!r}: set arch.loss.name and its keys")
        name = hyper.pop("name", "")
        model_class = resolve(name, "models", "arch.name")
        for key, expected in self.requires.items():
            if (own := getattr(model_class, key, None)) != expected:
                what = f"declares {key}={own!r}" if own else f"declares no {key}"
                raise UsageError(
                    f"arch.name={name} {what}, this script works with {key}={expected!r}: choose another one"
                )
        loss_class = resolve(loss.get("name", ""), "losses", "arch.loss.name")
        model_config = build_config(model_class, hyper, "arch")
        return Arch(model_class, model_config, loss_class, build_config(loss_class, loss, "arch.loss"))

    def check(self, config: Any) -> None:
        """Check all names and keys, before data are read. Raises: UsageError."""
        self._build.check(config)

    def create_model(self, config: Any, shape: Any, runtime: Any) -> tuple[Any, Any]:
        """(model, loss head) on the device. Raises: UsageError if they do not fit the data."""
        return self._build.create_model(config, shape, runtime)  # type: ignore[no-any-return]

    def build(self, config: Any, runtime: Any) -> Any:
        """The `engine.task.TrainingPlan` of one run: data, model, loss, task."""
        return self._build.build(config, runtime)


def family_of(entry: str, where: str) -> Family:
    """The family of the entry script `entry`; `where` begins the error's line. Raises: UsageError."""
    if entry not in FAMILIES:
        raise UsageError(f"{where}: {entry!r}: expected an entry script, {did_you_mean(str(entry), FAMILIES)}")
    known = vars(import_ours(f"tasks.{FAMILIES[entry]}.family", where)).values()
    return next(each for each in known if isinstance(each, Family) and each.entry == entry)


def families() -> list[Family]:
    """The families of all entry scripts."""
    return [family_of(entry, "tasks/") for entry in FAMILIES]


def create_evaluators(blocks: Iterable[Mapping[str, Any]]) -> list[Any]:
    """An evaluator for each block of `evaluators`, `{name: module@Class, ...}`. Raises: UsageError like `resolve`."""
    evaluators = []
    for number, block in enumerate(blocks):
        where = f"evaluators[{number}]"
        cls = resolve(block.get("name"), "evaluators", f"{where}.name")
        evaluators.append(cls(build_config(cls, block, where)))
    return evaluators


def resolve(name: str | None, slot: str, where: str | None = None) -> type:
    """The class that `name` means in `slot`, imported now.

    `heads@Head` in slot losses is in `losses.heads`; a name that begins with the slot's own package is absolute
    (`losses@Head`). `where` is the dotted key that errors name. Raises: UsageError listing what exists, also for a
    class of another slot or a mere helper class; an ImportError raised *inside* an existing module is passed on
    unchanged: it is a bug there, not a wrong name.
    """
    place = where or f"name under {slot}/"
    if (split := split_name(str(name), slot)) is None:
        given = "it is missing, expected" if name is None else f"{name!r} is not of the form"
        raise UsageError(f"{place}: {given} module@Class, e.g. {_example(slot)}")
    parts, cls_name = split
    if parts[0] != slot:
        raise UsageError(f"{place}: {name!r} is a class of {parts[0]}/, expected one of {slot}/, e.g. {_example(slot)}")
    for depth in range(1, len(parts) + 1):
        if not _exists(parts[:depth], place):
            known = modules_of(parts[0])
            hint = did_you_mean(".".join(parts[1:]), known)
            raise UsageError(f"{place}: {name!r}: there is no module {'.'.join(parts[:depth])}: {hint}")
    target = import_ours(".".join(parts), place)
    cls = getattr(target, cls_name, None)
    if not isinstance(cls, type) or cls.__module__.partition(".")[0] != slot:  # only imported there, not defined
        hint = did_you_mean(cls_name, classes_of(target))
        raise UsageError(f"{place}: {name!r}: {'.'.join(parts)} has no class {cls_name}: {hint}")
    missing = [method for method in CONTRACTS.get(slot, ()) if not callable(getattr(cls, method, None))]
    if missing:
        usable = [name for name in classes_of(target) if callable(getattr(getattr(target, name), missing[0], None))]
        raise UsageError(
            f"{place}: {name!r} has no {missing[0]}(), so it cannot be used here: {did_you_mean('', usable)}"
        )
    return cls


def split_name(name: str, slot: str) -> tuple[list[str], str] | None:
    """(parts of the module's dotted name, class) that `name` means in `slot`; None if it is not module@Class."""
    module, at, cls_name = name.partition("@")
    parts = module.split(".")
    if not at or not all(part.isidentifier() for part in [*parts, cls_name]):
        return None
    return (parts if parts[0] in SLOTS else [slot, *parts]), cls_name


def build_config(cls: type, data: Mapping[str, Any], where: str) -> Any:
    """`cls.Config` from its block of the config; `name`, that of the class, is ignored unless declared.

    Raises: UsageError like `engine.schema.structure`, also for keys given to a class without a Config.
    """
    schema = getattr(cls, "Config", None)
    declared = getattr(schema, "__dataclass_fields__", {})
    rest = {key: value for key, value in data.items() if key in declared or key != "name"}
    if schema is None:
        if rest:
            raise UsageError(f"{where}: {cls.__name__} takes no keys, got {', '.join(map(str, rest))}")
        return None
    return structure(schema, rest, where)


def modules_of(package: str) -> list[str]:
    """Dotted names of the modules (and packages) in a root package, without importing them."""
    folder = ROOT / package
    names = [path.relative_to(folder).with_suffix("").parts for path in folder.rglob("*.py")]
    return sorted(".".join(parts).removesuffix(".__init__") for parts in names if parts != ("__init__",))


def classes_of(module: Any) -> list[str]:
    """Public classes that a module defines or exports from our packages."""
    values = {name: getattr(module, name, None) for name in (*vars(module), *getattr(module, "__all__", ()))}
    return [
        name
        for name, value in values.items()
        if not name.startswith("_") and inspect.isclass(value) and value.__module__.split(".")[0] in SLOTS
    ]


def import_ours(name: str, where: str) -> ModuleType:
    """Import a module of this project's folder. Raises: UsageError for one that is elsewhere."""
    top = name.partition(".")[0]
    spec = importlib.util.find_spec(top)
    origin = Path(spec.origin).resolve() if spec and spec.origin else None
    if origin not in [(ROOT / form).resolve() for form in (f"{top}.py", f"{top}/__init__.py")]:
        raise UsageError(f"{where}: {top} is {origin or 'nothing'}, not the one in {ROOT}: rename what shadows it")
    return importlib.import_module(name)


def _exists(parts: list[str], where: str) -> bool:
    """Whether `parts` name a module. Imports its parents (whose own errors are passed on), not the module."""
    if len(parts) > 1 and not hasattr(import_ours(".".join(parts[:-1]), where), "__path__"):
        return False
    return importlib.util.find_spec(".".join(parts)) is not None


def _example(slot: str) -> str:
    return {"models": "recursive_reasoning.trm@TRM", "losses": "losses@Head"}.get(slot, f"module@Class under {slot}/")
