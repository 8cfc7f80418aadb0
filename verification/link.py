"""Resolves the `module@Class` names of a config. A class is imported once and described in a disk cache, so that rules
can judge names and declarations without importing torch.
"""

from __future__ import annotations

import inspect
import linecache
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.errors import UsageError
from engine.io import did_you_mean
from engine.registry import SLOTS, build_config, classes_of, import_ours, modules_of, split_name
from verification.recall import recall, trees

Place = tuple[str, int]
"""A file below the root and a line in it."""
MODES = {"online": "fixed", "fixed": "fixed", "original": "dynamic", "dynamic": "dynamic"}
"""Word in the name of a `_forward_train_<mode>` method -> ACT mode, by the guide's names."""


@dataclass
class Link:
    """A `module@Class` name of the config, and the description of its class."""

    key: str
    """The dotted key: arch.name."""
    text: str
    module: str = ""
    cls_name: str = ""
    problem: str = ""
    """Why the class could not be found; the fields below are then empty."""
    module_file: str = ""
    exported: bool = True
    """Whether the module has no `__all__`, or names the class in it."""
    place: Place = ("", 0)
    names: list[str] = field(default_factory=list)
    """Our modules and classes among the class and its bases."""
    declared: dict[str, Any] = field(default_factory=dict)
    """Its class variables with plain values: FAMILY, DATA_MODE, ACT_MODE, ..."""
    train_forward: str = ""
    """The `_forward_train_*` method that `forward` names, else the only one of the class."""
    train_place: Place = ("", 0)
    callable: bool = False
    """Whether it has a forward."""
    uncallable: str = ""
    """Why the trainer cannot call it as a model; empty if it can, or if the name is not that of a model."""
    fields: list[str] = field(default_factory=list)
    """Fields of its Config."""
    config: str = ""
    """The name of its Config, empty if it has none."""
    config_place: Place = ("", 0)
    config_bases: list[str] = field(default_factory=list)
    """Names of its Config and of the dataclasses that it extends."""
    misfit: str = ""
    """Why its Config does not accept the keys of the block."""

    @property
    def encoder_policy(self) -> str | None:
        """reencode, cache_first_step or none, as the class declares; an embedding layer is not an encoder."""
        return str(self.declared.get("ENCODER_POLICY", "none")) if self.callable else None


def mode_of_name(name: str) -> str:
    """The ACT mode of a training method by its name: fixed, dynamic, or "" if it is not one of the guide's."""
    words = name.removeprefix("_forward_train").strip("_").split("_")
    return next((MODES[word] for word in words if word in MODES), "")


def follow(key: str, block: Any, slot: str) -> Link:
    """Resolve `block["name"]`, or a bare name. Raises nothing: an error is in `problem` of the link."""
    block = dict(block) if isinstance(block, Mapping) else {"name": block}
    if key == "arch.name":
        block.pop("loss", None)
    values = recall(["link", key, slot, block], lambda: asdict(_observe(key, block, slot)), keep_if=_was_imported)
    return Link(**{**values, **{name: tuple(values[name]) for name in ("place", "train_place", "config_place")}})


def _was_imported(values: Any) -> bool:
    return bool(values["module_file"])  # else a missing library may be installed later


def _observe(key: str, block: dict[str, Any], slot: str) -> Link:
    text = block.get("name")
    link = Link(key, "" if text is None else str(text))
    if (split := split_name(link.text, slot)) is None:
        link.problem = f"{link.text!r} is not of the form module@Class"
        return link
    link.module, link.cls_name = ".".join(split[0]), split[1]
    try:
        module = import_ours(link.module, key)
    except UsageError as error:  # a package of the same name that is not ours
        link.problem = str(error)
        return link
    except ModuleNotFoundError as error:
        ours = error.name is not None and f"{link.module}.".startswith(f"{error.name}.")
        hint = did_you_mean(link.module.partition(".")[2], modules_of(slot))
        link.problem = f"there is no {link.module.replace('.', '/')}.py: {hint}" if ours else f"{link.module}: {error}"
        return link
    except (ImportError, SyntaxError, AttributeError, TypeError, NameError, ValueError) as error:
        link.problem = f"{link.module} cannot be imported: {type(error).__name__}: {error}"
        return link
    link.module_file = place_of(module)[0]
    cls = getattr(module, link.cls_name, None)
    if isinstance(cls, type):
        _describe(link, cls, module, block)
    else:
        hint = did_you_mean(link.cls_name, classes_of(module))
        link.problem = f"{link.module} has no class {link.cls_name}: {hint}"
    return link


def _describe(link: Link, cls: type, module: ModuleType, block: dict[str, Any]) -> None:
    link.exported = link.cls_name in getattr(module, "__all__", [link.cls_name])
    link.place = place_of(cls)
    ours = [one for one in cls.__mro__ if one.__module__.partition(".")[0] in SLOTS]
    link.names = [name for one in ours for name in (one.__module__, one.__name__)]
    plain = ((name, getattr(cls, name)) for name in dir(cls) if name.isupper())
    link.declared = {name: value for name, value in plain if isinstance(value, str | int | float | None)}
    link.train_forward = next(_training_methods(cls), "")
    link.train_place = place_of(getattr(cls, link.train_forward, None))
    link.callable = hasattr(cls, "forward")
    link.uncallable = _uncallable(cls) if link.key == "arch.name" else ""
    schema = getattr(cls, "Config", None)
    if schema is not None:
        link.fields = [one.name for one in fields(schema)]
        link.config, link.config_place = schema.__name__, place_of(schema)
        link.config_bases = [base.__name__ for base in schema.__mro__]
    try:
        build_config(cls, block, link.key.removesuffix(".name"))
    except UsageError as error:
        link.misfit = str(error)


def _uncallable(cls: type) -> str:
    from torch import nn

    if not issubclass(cls, nn.Module):
        return f"{cls.__name__} is not an nn.Module"
    if cls.forward is nn.Module.forward:
        return f"{cls.__name__} has no forward"
    signature = inspect.signature(cls.forward)
    if getattr(cls, "ACT_MODE", None) is not None or "carry" in signature.parameters:
        try:
            signature.bind(None, {})
            signature.bind(None, {}, None)
        except TypeError as error:
            return f"{cls.__name__}.forward cannot be called as forward(batch, carry=None): {error}"
    return ""


def _training_methods(cls: type) -> Iterator[str]:
    code = getattr(getattr(cls, "forward", None), "__code__", None)
    yield from (name for name in (code.co_names if code else ()) if name.startswith("_forward_train"))
    methods = [name for name in dir(cls) if name.startswith("_forward_train")]  # if forward is wrapped
    yield from methods if len(methods) == 1 else ()


def place_of(item: Any) -> Place:
    """File and line of one of our modules, classes or functions; ("", 0) for None and others. A place is returned."""
    if isinstance(item, tuple):
        return item
    code = getattr(inspect.unwrap(item), "__code__", None) if callable(item) else None
    module = item if isinstance(item, ModuleType) else sys.modules.get(getattr(item, "__module__", None) or "")
    file = code.co_filename if code is not None else getattr(module, "__file__", None) or ""
    path = Path(file).resolve()
    root = next((root for root in trees() if path.is_relative_to(root)), None)
    if item is None or root is None or not path.is_file():
        return "", 0
    line = code.co_firstlineno if code is not None else class_line(file, str(getattr(item, "__name__", "")))
    return path.relative_to(root).as_posix(), line


def class_line(file: str, name: str) -> int:
    """The line of a class statement; 0 if the file has none."""
    lines = enumerate(linecache.getlines(file), 1)
    return next((number for number, line in lines if re.match(rf"\s*class {re.escape(name)}\b", line)), 0)
