"""Which options of the config groups an entry script can take: those whose keys its schema has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.cli.keys import keys_of
from engine.cli.recipes import locate, read_option
from engine.cli.translate import Groups


def options_for(schema: Any, groups: Groups, *folders: Path) -> dict[str, list[str]]:
    """Group -> the options that the script of `schema` can take; groups without one are left out."""
    given = {group: options for group, options in groups.options.items() if group != "base"}
    files = {g: {o: locate(folders, f"{g}/{o}") for o in given[g]} for g in given}
    fitting = {g: [o for o, path in files[g].items() if path and not foreign_key(schema, path)] for g in given}
    return {group: options for group, options in fitting.items() if options}


def foreign_key(schema: Any, path: Path) -> str:
    """The first key that a group's file sets and the script lacks; "" where it has them all.

    A block with a name (arch) is foreign where its class is of another family than the one in `schema.NESTED_SCHEMAS`.
    """
    content: Any = read_option(path)
    jobs = content.pop("hydra", {}).get("sweeper", {}).get("params", {})  # a preset of config/sweep
    for key, value in (content | jobs).items():
        root, _, inner = key.partition(".")
        block = schema.NESTED_SCHEMAS.get(root)
        if root != "defaults" and root not in keys_of(schema):
            return key
        if block is not None and isinstance(value, Mapping) and "name" in value:
            if value["name"].partition(".")[0] != block.__module__.split(".")[1]:
                return f"{key}.name"
        elif block is not None:
            strange = [name for name in ([inner] if inner else value) if name not in {*keys_of(block), "loss"}]
            if strange:
                return f"{root}.{strange[0]}"
    return ""
