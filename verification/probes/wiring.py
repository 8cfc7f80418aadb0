"""Probes of the guide's step 2: what the launch does (SCR120), which models it accepts (SCR112), which data it loads
(SCR121), and the claims of names and comments (SCR131, SCR140).

The model class of the config is replaced by a subclass under a name that only the config has: a script that trains
anything else does not read `arch.name`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.config import NOT_IDENTITY
from engine.errors import UsageError
from engine.schema import structure
from verification.finding import Level
from verification.link import place_of
from verification.probes.changes import candidates
from verification.probes.instance import Tiny, Unobservable, reachable
from verification.probes.launch import MAKERS, launched, watched
from verification.probes.registry import Note, probe
from verification.spec import Settings

STAND_IN = "_stand_in"
OTHER_MODE = {
    "dynamic": re.compile(
        r"fixed (number of )?(act )?steps|num_act_steps|cached? in (the )?carry|once when (the |a )?sample starts", re.I
    ),
    "fixed": re.compile(r"dynamic halting|carry persists|halts? when", re.I),
}
WRONG_NAMES = {"dynamic": re.compile(r"online|fixed"), "fixed": re.compile(r"original|dynamic")}


# --- wiring -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stand_in(tiny: Tiny, **declared: Any) -> Iterator[tuple[type, str]]:
    """Register a subclass of the model class with other declarations: (the class, its arch.name)."""
    cls = tiny.model_class
    subclass = type(
        cls.__name__, (cls,), {**declared, "__module__": f"models.{STAND_IN}", "__qualname__": cls.__qualname__}
    )
    module = ModuleType(f"models.{STAND_IN}")
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    setattr(module, cls.__name__, subclass)
    sys.modules[module.__name__] = module
    sys.modules["models"].__dict__[STAND_IN] = module
    try:
        yield subclass, f"{STAND_IN}@{cls.__name__}"
    finally:
        del sys.modules[module.__name__], sys.modules["models"].__dict__[STAND_IN]


@probe("SCR120")
def wiring(tiny: Tiny) -> Iterator[str | Note]:
    """The launch makes the contract's calls, and builds the class that the config names."""
    seen = tiny.launch
    about = inspect.unwrap(seen.module.launch)
    if seen.error is not None and "run" not in seen.calls:
        text = f"{type(seen.error).__name__}: {' '.join(str(seen.error).split())[:200]}"
        yield Note("FAIL", f"launch stops with {text}", about)
        return
    if "load_synced_config" not in seen.calls:
        text = "launch does not call load_synced_config: the config is neither checked nor the same on all ranks"
        yield Note("FAIL", text, about)
    elif seen.calls[0] != "load_synced_config":
        yield Note("FAIL", f"{seen.calls[0]} comes before load_synced_config", about)
    if not {"run", "create_model"} & set(seen.calls):
        yield Note("FAIL", "launch calls neither run nor create_model: nothing is trained", about)
    if seen.entry is not None and Path(str(seen.entry)).stem != seen.name:
        yield Note("FAIL", f"entry={seen.entry!r} is not this script's name ({seen.name})", about)
    settings = other_values(tiny)
    passed = launched(seen.module, settings).config
    if passed is not None and (other := differing(vars(structure(tiny.schema, settings)), vars(passed))):
        yield Note("FAIL", f"launch changes the config between command and run: {', '.join(other)}", about)
    makers: list[str] = []
    with (
        stand_in(tiny) as (cls, name),
        watched(lambda _, code: makers.append(code.co_name) if code.co_name in MAKERS else None),
    ):
        module = tiny.build(name=name).task.module
        right = any(isinstance(part, cls) for part in module.modules())
    if not makers:
        yield Note("FAIL", f"nothing calls {MAKERS[0]}, the contract's name for making the model", about)
    if not right:
        text = f"a config that names another model class still trains {type(module).__name__}: arch.name has no effect"
        yield Note("FAIL", text, about)


def other_values(tiny: Tiny) -> Settings:
    """Settings in which as many keys as possible differ from their defaults, which a launch may wrongly insert."""
    settings = dict(tiny.settings)
    for name, one in tiny.schema.__dataclass_fields__.items():
        value = settings.get(name, one.default)
        if name in NOT_IDENTITY or name in tiny.spec.pinned or not isinstance(value, bool | int | float):
            continue
        other = candidates(type(value), value)[0]
        with contextlib.suppress(UsageError):
            structure(tiny.schema, {**settings, name: other})
            settings[name] = other
    return settings


def differing(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """`key=VALUE, not EXPECTED` for each value of a config that differs in `actual`; nested keys are dotted."""
    lines: list[str] = []
    for key, value in expected.items():
        other = actual.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            lines += [f"{key}.{line}" for line in differing(value, other)]
        elif value != other and not key.startswith("_"):
            lines.append(f"{key}={other}, not {value}")
    return lines


@probe("SCR112", "SCR120")
def refuses_others(tiny: Tiny) -> Iterator[str | Note]:
    """A model that declares another family, or another data mode, is refused."""
    for key in ("FAMILY", "DATA_MODE"):
        with stand_in(tiny, **{key: "of_nobody"}) as (_, name):
            try:
                tiny.build(name=name)
            except UsageError:
                continue
        where = inspect.unwrap(tiny.launch.module.launch)
        yield Note("FAIL", f"{tiny.launch.name}.py takes a model that declares {key}='of_nobody'", where)


@probe("SCR121")
def data_classes(tiny: Tiny) -> Iterator[str | Note]:
    """The data mode of the task's data sets is that of the model."""
    mode = getattr(tiny.model_class, "DATA_MODE", None)
    classes = {cls for cls in map(type, reachable(tiny.build().task)) if cls.__module__.partition(".")[0] == "dataset"}
    declaring = sorted((cls for cls in classes if hasattr(cls, "DATA_MODE")), key=lambda cls: cls.__name__)
    if not declaring:
        names = ", ".join(sorted(cls.__name__ for cls in classes)) or "no class of dataset/"
        raise Unobservable(f"{names} declares no DATA_MODE: the data sets say it themselves (DAT510)")
    for cls in declaring:
        level: Level = "PASS" if mode == cls.DATA_MODE else "FAIL"
        yield Note(level, f"the task takes {cls.__name__} of DATA_MODE={cls.DATA_MODE!r}, the model is {mode!r}", cls)


# --- names and comments -----------------------------------------------------------------------------------------------


def reviewed(tiny: Tiny) -> tuple[list[Any], list[str]]:
    """What a reviewer reads: the script, the code that builds the run, task and model with bases; and their files."""
    build: Any = tiny.launch.build
    while isinstance(build, functools.partial):
        build = build.func
    modules = [tiny.launch.module, inspect.getmodule(build), inspect.getmodule(tiny.task_class)]
    classes = [*tiny.task_class.__mro__, *tiny.model_class.__mro__]
    files = [place_of(one)[0] for one in classes]
    paths = [Path(module.__file__ or "") for module in modules if module is not None]
    files += [path.resolve().relative_to(tiny.root).as_posix() for path in paths if path.is_relative_to(tiny.root)]
    items = [item for item in dict.fromkeys([*modules, *classes]) if item is not None]
    return items, [file for file in dict.fromkeys(files) if file]


@probe("SCR131", act=True, level="WARN")
def function_names(tiny: Tiny) -> Iterator[str | Note]:
    """Training functions of the script, of the code that builds the run, and of the task are named after its mode."""
    mode = tiny.act_mode
    pattern = WRONG_NAMES.get(str(mode))
    if pattern is None:
        raise Unobservable("the model declares no ACT_MODE")
    items, files = reviewed(tiny)
    for name, value in (pair for item in items for pair in vars(item).items()):
        named = "train" in name and not name.startswith("_forward_train") and pattern.search(name)
        if named and inspect.isfunction(value) and place_of(value)[0] in files:
            yield Note("WARN", f"{name} is named after another mode than {mode}", value)


@probe("SCR140", act=True, level="WARN")
def comments(tiny: Tiny) -> Iterator[str | Note]:
    """No comment or docstring describes the other mode."""
    mode = tiny.act_mode
    pattern = OTHER_MODE.get(str(mode))
    if pattern is None:
        raise Unobservable("the model declares no ACT_MODE")
    _, files = reviewed(tiny)
    for file in files:
        for text, line in prose((tiny.root / file).read_text(encoding="utf-8")):
            if match := pattern.search(text):
                yield Note("WARN", f"a comment says '{match[0]}', the model is {mode}", (file, line))
    yield Note("PASS", f"no comment of another mode in {len(files)} files")


def prose(text: str) -> Iterator[tuple[str, int]]:
    """Comments and lines of docstrings, with their line numbers."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]
        elif token.type == tokenize.STRING and token.string.lstrip("rRbBuU")[:3] in ('"""', "'''"):
            for offset, line in enumerate(token.string.splitlines()):
                yield line, token.start[0] + offset
