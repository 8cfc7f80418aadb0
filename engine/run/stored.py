"""The config.yaml of a run, read as what it is: a file that may come from anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.config import HEADER
from engine.errors import UsageError
from engine.reading import Unreadable, parse_json, read_yaml, reason_of

LARGEST = 1 << 20
"""Characters and values of a config once every interpolation is replaced by what it stands for."""
_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?(\.*)([A-Za-z_][\w.\[\]-]*)[},]")


def stored_text(folder: Path) -> str:
    """The text of `folder`/config.yaml, of which is known: it is a config with an origin, and it can be resolved in
    reasonable time and memory.

    Raises: UsageError that names the file and what is wrong with it.
    """
    path = folder / "config.yaml"
    try:
        text = read_yaml(path)
        _check_origin(text.partition("\n")[0])
        config = OmegaConf.create(text)
        if not isinstance(config, DictConfig):
            raise Unreadable("is not a block of keys")
        strange = [key for key in config if not isinstance(key, str)]
        if strange:
            raise Unreadable(f"has the key {strange[0]!r}, which is no text")
        fault = interpolation_fault(OmegaConf.to_container(config, resolve=False))
        if fault:
            raise Unreadable(fault)
    except (OSError, Unreadable) as error:
        raise UsageError(f"{path} {reason_of(error)}: the config of this run cannot be used") from None
    except (YAMLError, OmegaConfBaseException, AssertionError, RecursionError) as error:
        words = " ".join(str(error).split())[:160]
        raise UsageError(f"{path} is no config ({words}): the config of this run cannot be used") from None
    return text


def _check_origin(first: str) -> None:
    """The first line names the recipe and its choices. Raises: Unreadable."""
    if not first.startswith(HEADER):
        return
    try:
        origin = parse_json(first.removeprefix(HEADER).encode())
    except Unreadable as error:
        raise Unreadable(f"has a damaged first line ({error})") from None
    choices = origin.get("choices", {}) if isinstance(origin, dict) else None
    name = origin.get("config_name") if isinstance(origin, dict) else None
    if not isinstance(name, str | None) or not isinstance(choices, dict):
        raise Unreadable("has a damaged first line (expected config_name and choices)")
    if not all(isinstance(choice, str | None) for choice in choices.values()):
        raise Unreadable("has a damaged first line (choices are names)")


def interpolation_fault(config: Any) -> str | None:
    """Why the interpolations of a plain, unresolved container cannot be resolved: they go in a circle, or each doubles
    what the one before stands for. None if they can; names that lead nowhere are the resolver's to report.
    """
    sizes: dict[tuple[str, ...], int] = {}
    under_way: set[tuple[str, ...]] = set()

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
        if place in under_way:
            raise Unreadable(f"refers to itself at {'.'.join(place)}")
        under_way.add(place)
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
        under_way.discard(place)
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
