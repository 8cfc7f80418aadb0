"""Reads the config of a run from its config.yaml, a file of unknown origin, and merges it with the command at a resume.

`resume=true` takes the stored config, with interpolations, as the base and puts the command line's values on top, so
that `resume=true run_name=x` needs nothing else and a changed value reaches everything derived from it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.cli.keys import keys_of
from engine.config import HEADER, ConfigSource, RunConfig, read_source, resolved_container, source_of
from engine.errors import UsageError
from engine.fields import flatten, value_at
from engine.io import did_you_mean
from engine.reading import Unreadable, parse_json, read_yaml, reason_of
from engine.run.files import read_json
from engine.run.identity import as_written, complete, has_key

C = TypeVar("C", bound=RunConfig)

LARGEST = 1 << 20
"""Limit of characters and values of a config with all interpolations expanded."""
_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?(\.*)([A-Za-z_][\w.\[\]-]*)[},]")


def stored_text(folder: Path) -> str:
    """The text of `folder`/config.yaml, checked: a config of valid origin, resolvable in reasonable time and memory.

    Raises: UsageError that names the file and what is wrong with it.
    """
    path = folder / "config.yaml"
    try:
        text = read_yaml(path)
        stored_origin(text)
        config = OmegaConf.create(text)
        if not isinstance(config, DictConfig):
            raise Unreadable("is not a block of keys")
        others = [key for key in config if not isinstance(key, str)]
        if others:
            raise Unreadable(f"has the key {others[0]!r}, which is not text")
        fault = interpolation_fault(OmegaConf.to_container(config, resolve=False))
        if fault:
            raise Unreadable(fault)
    except (OSError, Unreadable) as error:
        raise UsageError(f"{path} {reason_of(error)}: the config of this run cannot be used") from None
    except (YAMLError, OmegaConfBaseException, AssertionError, RecursionError) as error:
        words = " ".join(str(error).split())[:160]
        raise UsageError(f"{path} is not a config ({words}): the config of this run cannot be used") from None
    return text


def stored_origin(text: str) -> dict[str, Any]:
    """`config_name` and the group `choices` in the first line of a stored `ConfigSource.yaml`; empty without it.

    Raises: Unreadable.
    """
    first = text.partition("\n")[0]
    if not first.startswith(HEADER):
        return {}
    try:
        origin = parse_json(first.removeprefix(HEADER).encode())
    except Unreadable as error:
        raise Unreadable(f"has a damaged first line ({error})") from None
    name, choices = (origin.get("config_name"), origin.get("choices", {})) if isinstance(origin, dict) else (0, 0)
    names = [name, *choices.values()] if isinstance(choices, dict) else [choices]
    if not all(isinstance(each, str | None) for each in names):
        raise Unreadable("has a damaged first line (expected config_name, and choices by group)")
    return origin  # type: ignore[no-any-return]


def interpolation_fault(config: Any) -> str | None:
    """Why the interpolations of a plain, unresolved container cannot be resolved: they are circular, or grow
    exponentially. None if they can; unknown names are left to the resolver.
    """
    sizes: dict[tuple[str, ...], int] = {}
    active: set[tuple[str, ...]] = set()

    def at(place: tuple[str, ...]) -> Any:
        node = config
        for step in place:
            if isinstance(node, list) and step.isdigit() and int(step) < len(node):
                node = node[int(step)]
            elif isinstance(node, Mapping) and step in node:
                node = node[step]
            else:
                return None
        return node

    def size(node: Any, place: tuple[str, ...]) -> int:
        if place in sizes:
            return sizes[place]
        if place in active:
            raise Unreadable(f"refers to itself at {'.'.join(place)}")
        active.add(place)
        total = 1
        if isinstance(node, Mapping):
            total += sum(size(value, (*place, str(key))) for key, value in node.items())
        elif isinstance(node, list):
            total += sum(size(value, (*place, str(number))) for number, value in enumerate(node))
        elif isinstance(node, str):
            total += len(node)
            for dots, name in _REFERENCE.findall(node):
                steps = tuple(step for step in re.split(r"[.\[\]]", name) if step)
                target = (*place[: len(place) - len(dots)], *steps) if dots else steps
                total += size(at(target), target)
        active.discard(place)
        if total > LARGEST:
            raise Unreadable(f"stands for more than {LARGEST:,} characters at {'.'.join(place)}")
        sizes[place] = total
        return total

    try:
        size(config, ())
    except Unreadable as error:
        return str(error)
    except RecursionError:
        return "refers from key to key too many times"
    return None


# --- the config of a resume -------------------------------------------------------------------------------------------


def merge_for_resume(
    stored_yaml: str,
    overrides: Sequence[str],
    groups: Iterable[str] = (),
    before: Mapping[str, Any] | None = None,
    declared: Collection[str] = (),
) -> DictConfig:
    """The stored, unresolved config with the command line's value overrides on top, unresolved.

    `groups` are further names of config groups (those of the new command's `ConfigSource.choices`); `before` is the
    schema's BEFORE, for keys that the stored config is older than. It may lack `declared` keys: a sparse recipe leaves
    them to their defaults.
    Raises: UsageError for a changed group, a `~` deletion, a sweep, or a key that the stored config lacks.
    """
    config, choices = OmegaConf.create(stored_yaml), stored_origin(stored_yaml).get("choices", {})
    assert isinstance(config, DictConfig)
    complete(config, before or {})
    OmegaConf.set_struct(config, True)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UsageError(f"cannot read an override: {' '.join(str(error).split())}") from error
    for override in parsed:
        _apply(config, override, choices, {*choices, *groups}, declared)
    OmegaConf.set_struct(config, False)
    return config


def _apply(
    config: DictConfig, override: Override, choices: Mapping[str, Any], groups: set[str], declared: Collection[str]
) -> None:
    key, line = override.key_or_group, override.input_line
    if override.is_delete():
        raise UsageError(f"{line}: a resumed run keeps its keys; drop it, or start afresh with resume=false")
    if override.is_sweep_override():
        raise UsageError(f"{line}: a resumed run takes one value, not a sweep")
    if key in groups:
        chosen, requested = choices.get(key), override.value()
        if str(chosen) != str(requested) and not (chosen is None and requested is None):
            was = f"was started with {key}={chosen}" if key in choices else f"was started without {key}"
            raise UsageError(f"{line}: this run {was}; drop it, or start afresh with resume=false")
        return
    plain: Any = OmegaConf.to_container(config, resolve=False)
    added = override.is_add() or override.is_force_add() or key in declared
    try:
        OmegaConf.update(config, key, override.value(), merge=True, force_add=added)
    except OmegaConfBaseException as error:
        hint = did_you_mean(key, dict(flatten(plain)))
        older = "a key newer than the run needs a new run (resume=false)"
        raise UsageError(f"{line}: the stored run has no key '{key}': {hint}; {older}") from error


def stored_config(folder: Path, config: C) -> C:
    """The config of the run in `folder` with this command's value overrides on top; it resumes there.

    Raises:
        UsageError: a group change, a `~` deletion, an unknown key, or no readable config.yaml in `folder`.
    """
    command = source_of(config)
    text = stored_text(folder)
    schema: Any = type(config)
    merged = merge_for_resume(text, command.overrides, command.choices, before=config.before, declared=keys_of(schema))
    merged.resume_from = config.resume_from  # this launch's, not the one that the run once started from
    header = text.partition("\n")[0] + "\n"
    # a time-stamped name would resolve to a new time
    resolved = {**resolved_container(merged), "run_dir": str(folder)}
    whole = header + OmegaConf.to_yaml(merged, resolve=False)
    return from_source(config, replace(command, yaml=whole, resolved=resolved, overlay=False, **stored_origin(text)))


def with_old_behaviour(config: C, folder: Path) -> C:
    """`config` with the behaviour that the run in `folder` has for keys that it is older than."""
    known = read_json(folder / "identity.json").get("config")
    ours = source_of(config).resolved
    later = [key for key in config.before if has_key(ours, key) and isinstance(known, dict) and not has_key(known, key)]
    if not later:
        return config
    stored = OmegaConf.to_container(OmegaConf.create(stored_text(folder)), resolve=False)
    text = OmegaConf.to_container(OmegaConf.create(source_of(config).yaml), resolve=False)
    values = {key: as_written(value_at(stored, key, config.before[key]), text, ours) for key in later}
    return from_source(config, edited(source_of(config), values))


def from_source(config: C, source: ConfigSource) -> C:
    """The config that `source` describes, of the class of `config` (`config` itself, if that is its source)."""
    return config if source is source_of(config) else read_source(type(config), source)


def edited(source: ConfigSource, values: Mapping[str, Any]) -> ConfigSource:
    """`source` with `values` for dotted keys."""
    header, _, _ = source.yaml.partition("\n")
    config = OmegaConf.create(source.yaml)
    assert isinstance(config, DictConfig)
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    return replace(
        source, yaml=f"{header}\n{OmegaConf.to_yaml(config, resolve=False)}", resolved=resolved_container(config)
    )
