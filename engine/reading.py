"""Reading files that other people may have written: regular files only, of bounded size, depth and expansion.

A run, a data set or a recipe may come from anywhere. Whatever lies under the name that is asked for (a folder, a pipe,
/dev/zero, a terabyte, brackets ten thousand deep, a YAML file of aliases that double) costs one line and no more.
All readers of JSON and YAML use this module; SECURITY.md has the threats.
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
"""Bytes. What this project writes stays far below: the state of an optimizer of a hundred layers takes 100 kB."""
DEPTH = 64
"""Brackets in brackets. A config has 6, a state 12."""
NODES = 200_000
"""Values of a YAML file once every alias is replaced by what it stands for."""

_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


RECKONED = re.compile(r"[-+]?(0[0-7_]+|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Bare numbers that YAML 1.1 takes for octal or for hours and minutes; on a command line none of them is a number."""


class Unreadable(ValueError):
    """A file is not what it has to be. The text states the fault, without the file's name."""


def kind_fault(mode: int) -> str | None:
    """Why a file of this `st_mode` is not one to read; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    what = next((name for test, name in kinds.items() if test(mode)), "a device")
    return f"is {what}, not a file"


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what is not a regular file, for libraries that open a path themselves. Raises: OSError, Unreadable."""
    fault = kind_fault(os.stat(path).st_mode)
    if fault:
        raise Unreadable(fault)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; a pipe without a writer does not hold us up. Raises: OSError, Unreadable."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    fault = kind_fault(os.fstat(handle).st_mode)
    if fault:
        os.close(handle)
        raise Unreadable(fault)
    return os.fdopen(handle, "rb")


def read_bytes(path: str | os.PathLike[str], limit: int = JSON_LIMIT) -> bytes:
    """The bytes of a regular file of at most `limit`. Raises: OSError, Unreadable."""
    with open_regular(path) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise Unreadable(f"has more than {limit:,} bytes, far too many for such a file")
    return data


def read_text(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> str:
    """A UTF-8 file; a byte order mark is not part of it. Raises: OSError, Unreadable."""
    return _text(read_bytes(path, limit))


def read_json(path: str | os.PathLike[str], limit: int = JSON_LIMIT, *, unique: bool = False) -> Any:
    """The value in a JSON file; `unique` refuses an object that has a key twice. Raises: OSError, Unreadable."""
    return parse_json(read_bytes(path, limit), unique=unique)


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file that is needed. Raises: UsageError that names the file and its fault."""
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
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be printed or stored
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
    """The text of a YAML file that is safe to load, see `check_yaml`. Raises: OSError, Unreadable."""
    return check_yaml(read_text(path, YAML_LIMIT))


def check_yaml(text: str) -> str:
    """`text` itself if it is YAML that a loader gets through: no syntax error, not too deep, its aliases, each replaced
    by what it stands for, not too many, and no number that would become another (010, 1:30). Raises: Unreadable.
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
                if event.implicit[0] and not event.tag and RECKONED.fullmatch(event.value):
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
    """The text of an error of this module, for a line that begins with the file's name."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    return str(error)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not valid UTF-8 ({error.reason} at byte {error.start})") from None
