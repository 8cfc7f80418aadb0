"""Lines of keys in YAML text."""

from __future__ import annotations

import functools

import yaml


@functools.lru_cache(maxsize=256)
def key_lines(text: str) -> dict[str, int]:
    """Dotted key -> line (1-based) for every key of nested mappings; empty for text that is no YAML mapping."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return {}
    found: dict[str, int] = {}

    def walk(current: yaml.Node | None, prefix: str) -> None:
        if isinstance(current, yaml.MappingNode):
            for key, value in current.value:
                name = f"{prefix}{key.value}"
                found[name] = key.start_mark.line + 1
                walk(value, f"{name}.")

    walk(node, "")
    return found


def line_of(text: str, key: str) -> int:
    """The line that sets a dotted key, 0 where the text does not."""
    return key_lines(text).get(key, 0)


@functools.lru_cache(maxsize=256)
def defaults_lines(text: str) -> list[tuple[str, str, int]]:
    """The entries of the defaults list in order: (group or "", option, line)."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return []
    entries: list[tuple[str, str, int]] = []
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        if key.value != "defaults" or not isinstance(value, yaml.SequenceNode):
            continue
        for item in value.value:
            line = item.start_mark.line + 1
            if isinstance(item, yaml.ScalarNode):
                entries.append(("", item.value, line))
            elif isinstance(item, yaml.MappingNode):
                entries += [(k.value, str(getattr(v, "value", "")), line) for k, v in item.value]
    return entries
