"""What makes two runs the same experiment: the config, less what may differ from launch to launch.

Configs may be older than a key: a schema's BEFORE has, for each key that came later, what a run did that does not set
it: a value, or the value of another key, written `${key}`. Such a run keeps doing that.
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
CLASSES = {"arch.loss": "losses", "arch": "models"}
"""Blocks whose `name` chooses the class that declares their keys -> its slot."""


def identity_of(config: Mapping[str, Any], *, without: Iterable[str]) -> dict[str, Any]:
    """The resolved `config` less the dotted keys `without`: what makes two runs the same experiment.

    1.0 becomes 1, so that `lr=1` and `lr=1.0` are the same run.
    """
    gone = set(without)

    def kept(node: Any, place: str) -> Any:
        if isinstance(node, Mapping):
            inner = {str(key): (value, f"{place}.{key}" if place else str(key)) for key, value in node.items()}
            return {key: kept(value, below) for key, (value, below) in inner.items() if below not in gone}
        if isinstance(node, list | tuple):
            return [kept(item, f"{place}[]") for item in node]
        return int(node) if isinstance(node, float) and node.is_integer() else node

    identity: dict[str, Any] = kept(config, "")
    return identity


def what_changed(stored: Mapping[str, Any], config: Any) -> str | None:
    """The keys in which `config` (of a schema) differs from a `stored` one so that weights may not fit, in words.

    The architecture's own keys come first; others that make another experiment count where none of those differs.
    None where nothing differs: the file itself is to blame then.
    """
    schema = type(config)
    same_shape = getattr(schema.NESTED_SCHEMAS.get("arch"), "NOT_SHAPE", ())
    without = {*schema.NOT_IDENTITY, *(f"arch.{key}" for key in same_shape)}
    then, now = (identity_of(tree, without=without) for tree in (stored, plain(config)))
    changed = {key: pair for key, pair in _differences(then, now) if UNSET not in pair or key.startswith("arch.")}
    if "arch.name" in changed:  # another class has other keys altogether
        changed = {"arch.name": changed["arch.name"]}
    shown = [key for key in changed if key.startswith("arch.")] or [*changed]
    if not shown:
        return None
    words = ["{}: {} in the checkpoint, {} now".format(key, *map(_in_words, changed[key])) for key in shown[:3]]
    return "; ".join(words) + (f"; and {len(shown) - 3} more" if len(shown) > 3 else "")


def changes(stored: Mapping[str, Any], identity: Mapping[str, Any], limit: int = 4) -> str:
    """`lr 0.1 -> 0.2, arch.depth 2 -> 3`: where two identities differ."""
    words = ["{} {} -> {}".format(key, *map(_in_words, pair)) for key, pair in _differences(stored, identity)]
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")


def _differences(then: Any, now: Any, place: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(dotted key, its two values); a block that one side lacks counts once. A key that is null may be left out."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*now, *then]):
            yield from _differences(then.get(key, UNSET), now.get(key, UNSET), f"{place}.{key}" if place else key)
    elif then != now and not (then in (None, UNSET) and now in (None, UNSET)):
        yield place, (then, now)


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a block of keys"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value!s:.80}"


def without_later(ours: Mapping[str, Any], known: Mapping[str, Any], later: Iterable[str]) -> dict[str, Any]:
    """`ours` as a run has it whose stored identity is `known`: without the `later` keys that `known` lacks."""
    return identity_of(ours, without=[key for key in later if known and not has_key(known, key)])


def completed(identity: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """`identity` with the default of every key that it does not set, and without those that count no longer.

    Two identities are held against each other in this form: what a run leaves to a default is the same run as what
    sets that value, and an identity that was stored before a key was declared is still known.
    """
    full = with_defaults(schema, identity)
    for key in schema.BEFORE:  # without one of these a run did something else than the default of today
        if key not in identity:
            full.pop(key, None)
    arch = full.get("arch")
    if isinstance(arch, Mapping):
        loss = arch.get("loss")
        full["arch"] = _with_own_defaults(arch, "arch")
        if isinstance(loss, Mapping):
            full["arch"]["loss"] = _with_own_defaults(loss, "arch.loss")
    return identity_of(full, without=schema.NOT_IDENTITY)


def _with_own_defaults(block: Mapping[str, Any], root: str) -> dict[str, Any]:
    try:
        chosen: Any = resolve(str(block.get("name")), CLASSES[root], f"{root}.name")
        return with_defaults(chosen.Config, block)
    except (UsageError, ImportError, AttributeError, TypeError):  # the class is gone: compared as it stands
        return dict(block)


# --- configs that are older than a key --------------------------------------------------------------------------------


def _reference(value: Any) -> str | None:
    return value[2:-1] if isinstance(value, str) and value.startswith("${") else None


def has_key(config: Any, key: str) -> bool:
    """Whether a plain container has the dotted `key`."""
    return value_at(config, key, MISSING) is not MISSING


def value_before(value: Any, config: Mapping[str, Any]) -> Any:
    """A value of `before`, its reference replaced by the resolved `config`'s value."""
    return value if (other := _reference(value)) is None else config.get(other)


def as_written(value: Any, text: Any, config: Mapping[str, Any]) -> Any:
    """A value of `before` for the unresolved `text`: a reference to what only the defaults set is resolved."""
    other = _reference(value)
    return value if other is None or has_key(text, other) else value_at(config, other)


def values_before(before: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `before` for the keys that a stored resolved config lacks."""
    return {key: value_before(value, config) for key, value in before.items() if not has_key(config, key)}


def complete(config: DictConfig, before: Mapping[str, Any]) -> None:
    """Put the keys that an unresolved stored config lacks into it, references as they are; retired ones leave it."""
    for key in RETIRED:
        config.pop(key, None)
    plain = OmegaConf.to_container(config, resolve=False)
    for key, value in before.items():
        other = _reference(value)
        block, dot, _ = key.rpartition(".")
        stands = has_key(plain, key) or (dot and not has_key(plain, block))  # or there is nothing to put it into
        if not stands and (other is None or other in config):
            OmegaConf.update(config, key, value)
