"""Annotations of config fields: the range of the values, and when the field has no effect.

    ema: bool = False
    ema_rate: Annotated[float, Range(0, below=1), Inert("ema=false")] = 0.999

`check_fields` in `__post_init__` checks values against ranges and choices; checks across fields stay there. In modules
that import torch, a marker's arguments must be literals: --help and messages read them without importing.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

_CONDITION = re.compile(r"([\w.]+)(!=|>=|=)(.*)")
_WORDS = {"null": None, "true": True, "false": False}


@dataclass(frozen=True)
class Range:
    """Bounds of a number, or of each number in a list: `low` and `high` inclusive, `above` and `below` exclusive."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    hint: str = ""
    """Appended to the message, e.g. an alternative."""

    def fits(self, value: Any) -> bool:
        """Whether a number, or each one in a list, is within the bounds; true for anything else, such as null."""
        numbers = value if isinstance(value, list) else [value]
        return all(self._contains(number) for number in numbers if isinstance(number, int | float))

    def describe(self, name: str, value: Any) -> str:
        """What was expected of the field `name` instead of `value`, as text."""
        low, high = self._ends
        if low is not None and high is not None and not isinstance(value, int):
            whole = self.above is None and self.below is None
            left, right = "<=" if self.above is None else "<", "<=" if self.below is None else "<"
            return f"a number from {low} to {high}" if whole else f"{low} {left} {name} {right} {high}"
        if high is not None and (low is None or value >= low):
            return f"at most {high}" if self.below is None else f"less than {high}"
        if self.above is not None:
            return f"more than {low}" if low else "a positive number"
        return f"at least {low}" if low else "0 or more"

    @property
    def interval(self) -> str:
        """The text in --help and in tables: `>= 1`, `> 0`, `in [0, 1)`."""
        low, high = self._ends
        if low is not None and high is not None:
            left, right = "[" if self.above is None else "(", "]" if self.below is None else ")"
            return f"in {left}{_number(low)}, {_number(high)}{right}"
        if low is not None:
            return f"{'>=' if self.above is None else '>'} {_number(low)}"
        return f"{'<=' if self.below is None else '<'} {_number(high or 0)}"

    @property
    def _ends(self) -> tuple[float | None, float | None]:
        return self.low if self.above is None else self.above, self.high if self.below is None else self.below

    def _contains(self, number: float) -> bool:
        low, high = self._ends
        above = low is None or (number >= low if self.above is None else number > low)
        return above and (high is None or (number <= high if self.below is None else number < high))


def _number(value: float) -> str:
    """A bound as text; powers of two beyond a million as `2^n`."""
    power = int(value).bit_length() - 1
    return f"2^{power}" if power > 20 and value == 2**power else f"{value:g}"


@dataclass(frozen=True)
class NotBlank:
    """The text must not be blank; `what` it names."""

    what: str


@dataclass(frozen=True)
class Inert:
    """The field has no effect if `when` is true of the script's whole config; `why` is the reason as text.

    `when` is text, `key=value`, `key!=value` or `key>=key`, several joined by ` and `, "" for always; or a predicate of
    the resolved config.
    """

    when: str | Callable[[Mapping[str, Any]], bool]
    why: str = ""

    @property
    def reason(self) -> str:
        """Text for messages."""
        return self.why or str(self.when)

    @property
    def condition(self) -> str:
        """Text for --help: the condition if it is text, else the reason."""
        return self.when if isinstance(self.when, str) else self.why

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Whether the field has no effect in `config`, a resolved container."""
        if not isinstance(self.when, str):
            return self.when(config)
        return not self.when or all(_holds(part, config) for part in self.when.split(" and "))


def _holds(condition: str, config: Mapping[str, Any]) -> bool:
    match = _CONDITION.fullmatch(condition)
    if match is None:
        raise ValueError(f"condition {condition!r} is not of the form key=value, key!=value or key>=key")
    key, sign, text = match.groups()
    value = value_at(config, key)
    if sign == ">=":
        other = value_at(config, text)
        return isinstance(value, int) and isinstance(other, int) and value >= other
    expected: Any = _WORDS[text] if text in _WORDS else int(text) if text.isdigit() else text
    return bool(value == expected) == (sign == "=")


def value_at(config: Any, key: str, default: Any = None) -> Any:
    """The value of the dotted `key` in a plain container."""
    for part in key.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return default
        config = config[part]
    return config


def flatten(block: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for everything in a nested mapping, each block before its contents."""
    for key, value in block.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")


@functools.cache
def declared(schema: type) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Field -> (type, markers); a subclass that only changes the default keeps the base's markers."""
    split: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    for cls in reversed(schema.__mro__):
        if is_dataclass(cls):
            hints = get_type_hints(cls, include_extras=True)
            for name in cls.__annotations__.keys() & {field.name for field in fields(cls)}:
                kind, *marks = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
                split[name] = kind, tuple(marks) or split.get(name, (None, ()))[1]
    return {field.name: split[field.name] for field in fields(schema)}


def check_fields(config: Any, place: str = "") -> None:
    """Check each field of a dataclass against its range and choices; `place` is its dotted key in the config.

    Raises: ValueError in one line that names the key, what was expected and what was given.
    """
    schema: Any = type(config)
    follows = getattr(schema, "FOLLOWS", {})  # checked last: the error should name the key that they follow
    for name, (kind, markers) in sorted(declared(schema).items(), key=lambda item: item[0] in follows):
        value, key = getattr(config, name), f"{place}.{name}" if place else name
        null = f", or {key}=null" if type(None) in get_args(kind) else ""
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ValueError(f"{key}={value}: choose one of {', '.join(map(str, get_args(kind)))}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value}: expected a finite number{null}")
        for mark in markers:
            if isinstance(mark, NotBlank) and isinstance(value, str) and not value.strip():
                raise ValueError(f"{key} is empty: name {mark.what}{null}")
            if isinstance(mark, Range) and not mark.fits(value):
                each = "numbers, each " if isinstance(value, list) else ""
                hint = f"; {mark.hint}" if mark.hint else ""
                raise ValueError(f"{key}={value}: expected {each}{mark.describe(name, value)}{null}{hint}")
