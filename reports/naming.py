"""Names settings by what differs between them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any]
"""Dotted key -> value; a key that is null is absent."""


def difference_names(settings: Sequence[Settings]) -> list[str]:
    """A name for each of the settings; only equal settings have equal names.

    It lists the keys that differ (`lr=0.1`, the last part of a key if it is unique) and the blocks that only some have
    (`encoder`, `no encoder`). Keys that exist only with a block, or with its `name`, are compared among the settings
    that have them.
    """
    keys = sorted({key for each in settings for key in each})
    held = [_blocks(each) for each in settings]
    blocks = sorted(set().union(*held))
    optional = {place for place in (*keys, *blocks) if _is_optional(place, settings, held)}
    shown_keys = [key for key in keys if key in optional or _varies(key, settings)]
    shown_blocks = [block for block in blocks if block in optional]
    labels = _short_labels([*shown_keys, *shown_blocks])
    names = []
    for each, own_blocks in zip(settings, held, strict=True):
        words = [f"{'' if block in own_blocks else 'no '}{labels[block]}" for block in shown_blocks]
        present = [key for key in shown_keys if key in each or key in optional]
        words += [f"{labels[key]}={as_text(each.get(key))}" for key in present]
        names.append(", ".join(words) or "all runs")
    return names


def _varies(key: str, settings: Sequence[Settings]) -> bool:
    return len({repr(each[key]) for each in settings if key in each}) > 1


def _is_optional(place: str, settings: Sequence[Settings], held: Sequence[set[str]]) -> bool:
    """Whether a key or block is present in some but not all settings with the same outer blocks (presence and `name`).
    `held`: the blocks of each of the settings."""
    presence: dict[tuple[Any, ...], set[bool]] = {}
    named = [(parent, f"{parent}.name") for parent in _parents(place)]
    for each, blocks in zip(settings, held, strict=True):
        kind = tuple((parent in blocks, repr(each.get(name)) if name != place else "") for parent, name in named)
        presence.setdefault(kind, set()).add(place in each or place in blocks)
    return any(len(seen) > 1 for seen in presence.values())


def _short_labels(places: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted place, or all of it if another has the same last part."""
    last_parts = Counter(place.rpartition(".")[2] for place in places)
    return {place: last if last_parts[last := place.rpartition(".")[2]] == 1 else place for place in places}


def _blocks(settings: Settings) -> set[str]:
    return {parent for key in settings for parent in _parents(key)}


def _parents(key: str) -> Iterator[str]:
    """`a`, `a.b` of `a.b.c`."""
    parts = key.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts)))


def as_text(value: Any) -> str:
    """A setting as on the command line; text that would be read as another type is quoted."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return repr(value) if _reads_as_another_type(value) else value
    return str(list(value) if isinstance(value, tuple) else value)


def _reads_as_another_type(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text)
        return True
    return text in ("", "null", "None", "True", "False") or text[0] in "[{"
