"""The files that a composed config came from, and the lines of their keys."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

WHOLE = "# @package _global_"
"""First line of a group's file whose keys are at the root of the config, not in a block of the group's name."""


def locate(folders: Sequence[Path], name: str) -> Path | None:
    """The file of the config `name`, in the first of `folders` that has it."""
    file = f"{name.removesuffix('.yaml')}.yaml"
    return next((folder / file for folder in folders if (folder / file).is_file()), None)


@dataclass(frozen=True)
class ConfigFile:
    """One file of a composition. `package` is the block that its keys belong to, "" for the root."""

    path: Path
    package: str
    text: str = field(repr=False)


def config_files(folders: list[Path], name: str, choices: Mapping[str, str | None]) -> list[ConfigFile]:
    """The files of a recipe with its choices, in the order in which Hydra merges them."""
    files: list[ConfigFile] = []

    def visit(name: str, package: str) -> None:
        path = locate(folders, name)
        if path is None or any(path == file.path for file in files) or len(files) > 50:
            return
        text, own_at = path.read_text(encoding="utf-8"), None
        for group, option, _ in defaults_lines(text):
            if option == "_self_":
                own_at = len(files)
            elif not group:
                here, entry = name.rpartition("/")[0], option.partition("@")[0]
                visit(entry.lstrip("/") if entry.startswith("/") or not here else f"{here}/{entry}", package)
            elif not group.startswith("override"):
                _visit_group(group.removeprefix("optional ").lstrip("/"), option)
        files.insert(len(files) if own_at is None else own_at, ConfigFile(path, package, text))

    def _visit_group(group: str, option: str | None) -> None:
        name = f"{group}/{choices.get(group, option)}"
        path = locate(folders, name)
        visit(name, "" if path and path.read_text(encoding="utf-8").startswith(WHOLE) else group)

    visit(name, "")
    for group, option in choices.items():
        _visit_group(group, option)
    return files


def set_in(files: Iterable[ConfigFile], key: str) -> tuple[Path, int] | None:
    """(file, line) of the last of `files` (in merge order) that sets a dotted key."""
    for file in reversed(list(files)):
        block = f"{file.package}." if file.package else ""
        if key.startswith(block) and (line := key_lines(file.text).get(key.removeprefix(block), 0)):
            return file.path, line
    return None


def place_of(message: str, folders: list[Path], source: Any) -> str:
    """`config/x.yaml line 3: ` for the key at the start of a message about a composed config; "" if the command or a
    default sets it. `source` is an engine.config.ConfigSource."""
    key = re.match(r"(?:unknown key ')?([A-Za-z_][\w.]*)", message)
    if key is None or any(word.lstrip("+").partition("=")[0] == key[1] for word in source.overrides):
        return ""
    if (found := set_in(config_files(folders, source.config_name or "", source.choices), key[1])) is None:
        return ""
    path, line = found
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path} line {line}: "


@functools.lru_cache(maxsize=256)
def _nodes(text: str) -> list[tuple[yaml.Node, yaml.Node]]:
    """(key, value) at the top of a YAML mapping; empty for any other text."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return []
    return node.value if isinstance(node, yaml.MappingNode) else []


@functools.lru_cache(maxsize=256)
def key_lines(text: str) -> dict[str, int]:
    """Dotted key -> line (1-based) for every key of nested mappings; empty for text that is not a YAML mapping."""
    lines: dict[str, int] = {}

    def walk(pairs: Iterable[tuple[yaml.Node, yaml.Node]], prefix: str) -> None:
        for key, value in pairs:
            name = f"{prefix}{key.value}"
            lines[name] = key.start_mark.line + 1
            walk(value.value if isinstance(value, yaml.MappingNode) else (), f"{name}.")

    walk(_nodes(text), "")
    return lines


@functools.lru_cache(maxsize=256)
def defaults_lines(text: str) -> list[tuple[str, str, int]]:
    """The entries of the defaults list in order: (group or "", option, line)."""
    entries: list[tuple[str, str, int]] = []
    for key, value in _nodes(text):
        if key.value != "defaults" or not isinstance(value, yaml.SequenceNode):
            continue
        for item in value.value:
            line = item.start_mark.line + 1
            if isinstance(item, yaml.ScalarNode):
                entries.append(("", item.value, line))
            elif isinstance(item, yaml.MappingNode):
                entries += [(k.value, str(getattr(v, "value", "")), line) for k, v in item.value]
    return entries
