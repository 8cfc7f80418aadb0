"""The identity of a run: its config without the keys that may differ between launches of the same experiment.

A stored config may be older than a key: a schema's BEFORE has, for each key added later, what a run without it did: a
value, or the value of another key, written `${key}`. Such a run keeps that behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engine.config import RETIRED
from engine.errors import UsageError
from engine.fields import value_at
from engine.registry import resolve
from engine.schema import plain, with_defaults

UNSET = "not set"


def identity_of(config: Mapping[str, Any], *, without: Iterable[str]) -> dict[str, Any]:
    """The resolved `config` without the dotted keys `without`: equal for two runs of the same experiment.

    1.0 becomes 1, so that `lr=1` and `lr=1.0` are the same run.
    """
    dropped = set(without)

    def normalise(node: Any, place: str) -> Any:
        if isinstance(node, Mapping):
            inner = {str(key): (value, f"{place}.{key}" if place else str(key)) for key, value in node.items()}
            return {key: normalise(value, below) for key, (value, below) in inner.items() if below not in dropped}
        if isinstance(node, list | tuple):
            return [normalise(item, f"{place}[]") for item in node]
        return int(node) if isinstance(node, float) and node.is_integer() else node

    return normalise(config, "")  # type: ignore[no-any-return]


def what_changed(stored: Mapping[str, Any], config: Any) -> str | None:
    """Text on the keys of `config` (a schema's instance) that differ from a `stored` one, so that weights may not fit.

    Keys of the architecture if any differ, else other keys of the identity. None if nothing differs: then the file
    itself is at fault.
    """
    schema = type(config)
    same_shape = getattr(schema.NESTED_SCHEMAS.get("arch"), "NOT_SHAPE", ())
    without = {*schema.NOT_IDENTITY, *(f"arch.{key}" for key in same_shape)}
    then, now = (identity_of(tree, without=without) for tree in (stored, plain(config)))
    changed = {key: pair for key, pair in _differences(then, now) if UNSET not in pair or key.startswith("arch.")}
    if "arch.name" in changed:  # another class has entirely different keys
        changed = {"arch.name": changed["arch.name"]}
    shown = [key for key in changed if key.startswith("arch.")] or [*changed]
    if not shown:
        return None
    words = ["{}: {} in the checkpoint, {} now".format(key, *map(_in_words, changed[key])) for key in shown[:3]]
    return "; ".join(words) + (f"; and {len(shown) - 3} more" if len(shown) > 3 else "")


def changes(stored: Mapping[str, Any], identity: Mapping[str, Any], limit: int = 4) -> str:
    """Text on where two identities differ: `lr 0.1 -> 0.2, arch.depth 2 -> 3`."""
    words = ["{} {} -> {}".format(key, *map(_in_words, pair)) for key, pair in _differences(stored, identity)]
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")


def _differences(then: Any, now: Any, place: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield (dotted key, its two values); a block missing on one side counts once. Null equals a missing key."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*now, *then]):
            yield from _differences(then.get(key, UNSET), now.get(key, UNSET), f"{place}.{key}" if place else key)
    elif then != now and not (then in (None, UNSET) and now in (None, UNSET)):
        yield place, (then, now)


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a block of keys"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value!s:.80}"


def completed(identity: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """`identity` with the defaults of all keys that it does not set, and without keys that no longer count.

    Identities are compared in this form: leaving a key to its default equals setting that value, and identities stored
    before a key was declared still match.
    """
    full = with_defaults(schema, identity)
    for key in schema.BEFORE:  # without one of these keys a run did something other than today's default
        if key not in identity:
            full.pop(key, None)
    if isinstance(arch := full.get("arch"), Mapping):
        full["arch"] = _with_own_defaults(arch, "models")
        if isinstance(loss := arch.get("loss"), Mapping):
            full["arch"]["loss"] = _with_own_defaults(loss, "losses")
    return identity_of(full, without=schema.NOT_IDENTITY)


def _with_own_defaults(block: Mapping[str, Any], slot: str) -> dict[str, Any]:
    """`block` with the defaults of the class of a registry slot that its `name` selects."""
    try:
        chosen: Any = resolve(str(block.get("name")), slot)
        return with_defaults(chosen.Config, block)
    except (UsageError, ImportError, AttributeError, TypeError):  # the class no longer exists: compared as it is
        return dict(block)


# --- configs that are older than a key --------------------------------------------------------------------------------


def _reference(value: Any) -> str | None:
    return value[2:-1] if isinstance(value, str) and value.startswith("${") else None


def has_key(config: Any, key: str) -> bool:
    """Whether a plain container has the dotted `key`."""
    return value_at(config, key, MISSING) is not MISSING


def value_before(value: Any, config: Mapping[str, Any]) -> Any:
    """A value of `before`, with a reference replaced by the resolved `config`'s value."""
    return value if (other := _reference(value)) is None else config.get(other)


def as_written(value: Any, text: Any, config: Mapping[str, Any]) -> Any:
    """A value of `before` for the unresolved config `text`: a reference to a key not in `text` is resolved."""
    other = _reference(value)
    return value if other is None or has_key(text, other) else value_at(config, other)


def complete(config: DictConfig, before: Mapping[str, Any]) -> None:
    """Add the keys of `before` that an unresolved stored config lacks, references as they are; remove retired keys."""
    for key in RETIRED:
        config.pop(key, None)
    plain = OmegaConf.to_container(config, resolve=False)
    for key, value in before.items():
        other = _reference(value)
        block, dot, _ = key.rpartition(".")
        skip = has_key(plain, key) or (dot and not has_key(plain, block))  # set, or its block is missing
        if not skip and (other is None or other in config):
            OmegaConf.update(config, key, value)
