"""Turns a resolved config into dataclasses, strictly.

Nothing is guessed: an unknown key, a wrong type or an unknown choice is a `UsageError` in one line with dotted path and
nearest choice. An integer is accepted as a number or text, never the reverse.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

import cattrs
from cattrs.cols import list_structure_factory, mapping_structure_factory
from cattrs.errors import BaseValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from engine.cli.keys import describe, hint_for, is_list, is_union, keys_of
from engine.errors import UsageError
from engine.io import did_you_mean

T = TypeVar("T")
WORDS = {"on": True, "yes": True, "off": False, "no": False}
"""Text that means true or false, as in YAML: Hydra's command line reads a bare `on` as text."""
NO_TEXT = re.compile("[\\0\\ud800-\\udfff]")
"""A null character, or a lone surrogate, which Python uses for bytes that are not UTF-8."""
LONGEST_SHOWN = 80  # characters of a value in an error
MISSING_WORDS, MOST_MISSING = "is required and has no value", 5
"""Message for a missing key, and how many missing keys an error lists."""


class Mismatch(TypeError):
    """A value that does not fit its declared type; the text names both, `_problems` adds the key."""


def structure(cls: type[T], data: Any, where: str = "") -> T:
    """Turn a plain container into the dataclass `cls`; `where` is the dotted key of `data` ("": the root).

    Raises: UsageError for unknown and missing keys, wrong types and choices, and failed cross-checks.
    """
    try:
        check_values(data, where)
        return converter().structure(data, cls)
    except (BaseValidationError, UsageError, TypeError, ValueError) as error:
        problems = _problems(error, [where] if where else [])
        few = len(problems) <= MOST_MISSING and all(MISSING_WORDS in line for line in problems)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 and not few else ""
        raise UsageError(" ".join("; ".join(problems if few else problems[:1]).split()) + more) from error


def is_contradiction(error: UsageError) -> bool:
    """Whether `structure` refused values of valid types, for being out of range or in conflict with each other."""

    def leaves(error: BaseException | None) -> Iterator[BaseException | None]:
        if not isinstance(error, BaseValidationError):
            yield error
        else:
            for inner in error.exceptions:
                yield from leaves(inner)

    return all(isinstance(leaf, ValueError) for leaf in leaves(error.__cause__))


def with_defaults(schema: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` plus the schema's defaults, as plain values, for declared keys that it lacks; also in nested blocks."""
    full = dict(given)
    for name, key in keys_of(schema).items():
        root, dot, inner = name.partition(".")
        block = full if not dot else full.get(root)
        if key.default is MISSING or not isinstance(block, Mapping) or (inner or root) in block or "." in inner:
            continue
        value = plain(key.default)
        full[root] = {**block, inner: value} if dot else value
    return full


def plain(value: Any) -> Any:
    """A default as a plain value of a config: dataclasses as dicts, a copy of anything else."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else copy.deepcopy(value)


def _problems(error: BaseException, path: list[str]) -> list[str]:
    """Flatten cattrs' tree of errors into sentences, unknown keys first: a misspelt key explains a missing one."""
    place = ".".join(path).replace(".[", "[")
    if isinstance(error, ForbiddenExtraKeysError):
        dot = place + "." if place else ""
        known = [dot + field.name for field in fields(error.cl)]
        unknown = sorted(error.extra_fields, key=str)
        hints = {key: hint_for(error.cl, key) or did_you_mean(dot + key, known) for key in unknown}
        for root, _, inner in (key.partition(".") for key in unknown if dot + key.partition(".")[0] in known):
            hints[f"{root}.{inner}"] = f"a file has a block for it, {root}: {{{inner}: ...}}"
        return [f"unknown key '{dot}{key}': {hint}" for key, hint in hints.items()]
    if isinstance(error, BaseValidationError):
        placed, general = error.group_exceptions()  # type: ignore[attr-defined]
        lines = [line for child in general for line in _problems(child, path)]
        for child, note in placed:
            step = getattr(note, "name", None) or getattr(note, "index", "")
            lines += _problems(child, [*path, step if isinstance(step, str) else f"[{step}]"])
        return sorted(lines, key=lambda line: not line.startswith("unknown key"))
    if isinstance(error, KeyError):
        return [f"{place} {MISSING_WORDS}: set {place}=..."]
    if isinstance(error, Mismatch) and place:
        return [f"{place}: {error}"]
    # a failed cross-check of __post_init__ names its key itself, but not which entry of a mapping it is: datasets.*
    return [str(error).replace(".".join([*path[:-1], "*."]), f"{place}.") if path else str(error)]


def _scalar(value: Any, kind: Any) -> Any:
    if type(value) is float and not math.isfinite(value):
        raise Mismatch(f"expected a finite number, got {value}")
    if kind is bool and type(value) is str and value.lower() in WORDS:
        return WORDS[value.lower()]
    if type(value) is kind:
        return value
    if kind in (float, str) and type(value) is int:
        return kind(value)
    word = "; YAML reads a bare on, off, yes or no as that: put the word in quotes" if type(value) is bool else ""
    raise Mismatch(f"expected {describe(kind)}, got {_shown(value)}{word if kind is str else ''}")


def _shown(value: Any) -> str:
    """A value as text for an error, shortened if it is long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}… ({len(text)} characters)"


def check_values(value: Any, where: str) -> None:
    """Check a container for values that no key of any type can take. Raises: UsageError."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_values(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            check_values(inner, f"{where}[{number}]")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UsageError(
            f"{where}: expected an integer between -2**63 and 2**63 - 1, got one of {value.bit_length()} bits"
        )
    elif isinstance(value, str) and NO_TEXT.search(value):
        raise UsageError(f"{where}: expected text in UTF-8 without a null character, got {_shown(value)}")


def _literal(value: Any, kind: Any) -> Any:
    choices, text = get_args(kind), str(value).lower()
    if value in choices and type(value) in map(type, choices):
        return value
    if text in ("true", "false"):  # YAML reads a bare true, on or yes as a bool although the choice is a word
        for word in ("true", "on", "yes") if text == "true" else ("false", "off", "no"):
            if word in choices:
                return word
    raise Mismatch(f"{_shown(value)} is not one of {describe(kind)}: {did_you_mean(str(value), map(str, choices))}")


def _union(value: Any, kind: Any) -> Any:
    parts = [part for part in get_args(kind) if part is not type(None)]
    if value is None and len(parts) < len(get_args(kind)):
        return None
    for part in parts[:-1]:
        with contextlib.suppress(BaseValidationError, Mismatch):
            return converter().structure(value, part)
    try:
        return converter().structure(value, parts[-1])
    except Mismatch as error:
        raise Mismatch(f"expected {describe(kind)}, got {_shown(value)}") if len(parts) > 1 else error from None


def _container(kind: Any, converter: cattrs.Converter) -> Any:
    expected = list if is_list(kind) else Mapping
    build: Any = (list_structure_factory if is_list(kind) else mapping_structure_factory)(kind, converter)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, expected):
            single = f"; write [{value}]" if expected is list and isinstance(value, str) else ""
            raise Mismatch(f"expected a {describe(kind)}, got {_shown(value)}{single}")
        return build(value, kind)

    return hook


def _block(cls: Any, converter: cattrs.Converter) -> Any:
    build = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise Mismatch(f"expected a block of keys, got {_shown(value)}")
        return build(value, cls)

    return hook


def _is_choice(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is Literal


@functools.cache
def converter() -> cattrs.Converter:
    result = cattrs.Converter()
    for kind in (bool, int, float, str):
        result.register_structure_hook(kind, _scalar)
    result.register_structure_hook_func(_is_choice, _literal)
    result.register_structure_hook_func(is_union, _union)
    # for lists and for blocks of free keys
    result.register_structure_hook_factory(lambda kind: is_list(kind) or dict in (kind, get_origin(kind)), _container)
    result.register_structure_hook_factory(is_dataclass, _block)
    return result
