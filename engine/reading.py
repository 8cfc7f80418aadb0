"""Reads files of unknown origin: regular files only, of bounded size, depth and expansion.

A run, a data set or a recipe may come from anywhere. Whatever a path leads to (a folder, a pipe, /dev/zero, a terabyte,
brackets ten thousand deep, a YAML file of doubling aliases), the only consequence is an error of one line.
All readers of JSON and YAML use this module; SECURITY.md lists the threats.
"""

from __future__ import annotations

import json
import os
import re
import stat
from io import BufferedReader
from typing import Any

import yaml

from engine.errors import UsageError

JSON_LIMIT, YAML_LIMIT, TEXT_LIMIT = 1 << 26, 1 << 22, 1 << 22
"""Bytes. Files of this project are far smaller: state.json for an optimizer of a hundred layers has 100 kB."""
DEPTH = 64
"""Limit of nesting. A config has a depth of 6, a state 12."""
NODES = 200_000
"""Limit of values in a YAML file with all aliases expanded."""

_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


CONVERTED = re.compile(r"[-+]?(0[0-7_]+|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Bare words that YAML 1.1 reads as octal numbers or as hours and minutes; the command line reads them otherwise."""


class Unreadable(ValueError):
    """A file is not readable as expected. The text states the fault, without the file's name."""


def check_regular(path: str | os.PathLike[str] | int) -> None:
    """Refuse anything but a regular file, for libraries that open a path themselves. Raises: OSError, Unreadable."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
        raise Unreadable(f"is {next((name for test, name in kinds.items() if test(mode)), 'a device')}, not a file")


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; never blocks on a pipe without a writer. Raises: OSError, Unreadable."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_regular(handle)
    except Unreadable:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_bytes(path: str | os.PathLike[str], limit: int = JSON_LIMIT) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Raises: OSError, Unreadable."""
    with open_regular(path) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise Unreadable(f"has more than {limit:,} bytes, far too many for such a file")
    return data


def read_text(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises: OSError, Unreadable."""
    return _text(read_bytes(path, limit))


def read_json(path: str | os.PathLike[str], limit: int = JSON_LIMIT, *, unique: bool = False) -> Any:
    """The value in a JSON file; `unique` refuses duplicate keys. Raises: OSError, Unreadable."""
    return parse_json(read_bytes(path, limit), unique=unique)


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a required JSON file. Raises: UsageError that names the file and its fault."""
    try:
        value = read_json(path)
    except (OSError, Unreadable) as error:
        raise UsageError(f"{os.fspath(path)} {reason_of(error)}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{os.fspath(path)}: expected a JSON object, found {type(value).__name__}")
    return value


def parse_json(data: bytes, *, unique: bool = False) -> Any:
    """The value of a JSON text. Raises: Unreadable."""
    depth = deepest = 0
    if data.count(b"[") + data.count(b"{") > DEPTH:
        for match in _BRACKETS.finditer(data):
            mark = match[0]
            depth += (mark in (b"[", b"{")) - (mark in (b"]", b"}"))
            deepest = max(deepest, depth)
    if deepest > DEPTH:
        raise Unreadable(f"is nested {deepest:,} deep")
    try:
        value = json.loads(_text(data), object_pairs_hook=_unique if unique else None)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be printed or stored
    except UnicodeEncodeError:
        raise Unreadable("is not JSON (it holds half a character)") from None
    except Unreadable:
        raise
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"is not JSON ({error})") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(value := dict(pairs)) < len(keys):
        raise Unreadable(f"has the key '{max(keys, key=keys.count)}' twice")
    return value


def read_yaml(path: str | os.PathLike[str]) -> str:
    """The text of a YAML file that is safe to load (see `check_yaml`). Raises: OSError, Unreadable."""
    return check_yaml(read_text(path, YAML_LIMIT))


def check_yaml(text: str) -> str:
    """Return `text` if it is YAML that is safe to load: no syntax error, not too deep, not too many values with aliases
    expanded, and no number that YAML would read as another (010, 1:30). Raises: Unreadable.
    """
    if len(text) > YAML_LIMIT:
        raise Unreadable(f"has more than {YAML_LIMIT:,} characters, far too many for a config")
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]

    def add(count: int, anchor: str | None = None) -> None:
        if anchor:
            sizes[anchor] = count
        name, total = open_nodes.pop()
        if total + count > NODES:
            raise Unreadable(f"stands for more than {NODES:,} values, far too many for a config")
        open_nodes.append((name, total + count))

    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):
                if any(event.anchor == name for name, _ in open_nodes):
                    raise Unreadable(f"holds an alias within itself (*{event.anchor})")
                add(sizes.get(str(event.anchor), 1))
            elif isinstance(event, yaml.ScalarEvent):
                if event.implicit[0] and not event.tag and CONVERTED.fullmatch(event.value):
                    meant, line = yaml.safe_load(event.value), event.start_mark.line + 1
                    raise Unreadable(f"line {line}: YAML reads {event.value} as {meant}: quote text, or write {meant}")
                add(1, event.anchor)
            elif isinstance(event, yaml.CollectionStartEvent):
                if len(open_nodes) > DEPTH:
                    raise Unreadable(f"is nested more than {DEPTH} deep")
                open_nodes.append((event.anchor, 1))
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, total = open_nodes.pop()
                add(total, anchor)
    except yaml.YAMLError as error:
        raise Unreadable(f"is not YAML ({' '.join(str(error).split())[:160]})") from None
    except RecursionError:
        raise Unreadable("is nested too deep") from None
    return text


def reason_of(error: OSError | ValueError) -> str:
    """The text of an error of this module, to follow the file's name."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    return str(error)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not valid UTF-8 ({error.reason} at byte {error.start})") from None
