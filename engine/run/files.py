"""Readers and writers of a run directory's files: JSON, YAML, line files."""

from __future__ import annotations

import datetime
import math
import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from engine import reading
from engine.errors import UsageError
from engine.io import atomic_write_text, print_rank0


def read_identity(run: Path, entry: str) -> dict[str, Any]:
    """identity.json of a run, {} if there is none. Raises: UsageError if another script than `entry` wrote it."""
    stored = read_json(run / "identity.json")
    if stored and stored.get("entry") != entry:
        raise UsageError(f"{run} is a run of {stored.get('entry')}.py, not of {entry}.py")
    return stored


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} if it is missing or damaged."""
    try:
        value = reading.read_json(path)
    except (OSError, reading.Unreadable):
        return {}
    return value if isinstance(value, dict) else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of `write_yaml`, {} if it is missing or damaged."""
    try:
        value = yaml.safe_load(reading.read_yaml(path))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def is_finished(path: Path) -> bool:
    """Whether the run completed. A "running" whose process is gone (kill -9) is not finished."""
    return read_json(path / "status.json").get("state") == "done"


def truncate_to(path: Path, size: int) -> int:
    """Truncate a line file to `size` bytes and drop a partial last line; return the bytes that remain.

    A file that is missing or already shorter (lines lost in a power failure) is kept, with a warning.
    """
    if not path.exists():
        if size:
            print_rank0(f"warning: {path} is missing, its lines before this point are lost; a new file begins")
        return 0
    present = path.stat().st_size
    if present < size:
        print_rank0(f"warning: {path} has {present} bytes instead of {size} at the checkpoint: some lines are lost")
    with open(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b") as stream:
        if (end := min(size, present)) > 0:  # an empty file cannot be mapped
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                end = content.rfind(b"\n", 0, end) + 1
        stream.truncate(end)
        os.fsync(stream.fileno())
    return end


def runs_below(folder: Path, most: int = 8) -> list[str]:
    """Paths of the runs in a folder of runs, or of projects."""
    runs = sorted(str(place.parent) for pattern in ("*", "*/*") for place in folder.glob(f"{pattern}/checkpoints"))
    return [*runs[:most], *(["..."] if len(runs) > most else [])]


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


def finite(value: Any) -> Any:
    """Replace NaN and infinities by None, for readers of strict JSON."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """YAML that all readers type the same: text such as `1e-4`, a number to OmegaConf, is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    numeric = re.fullmatch(r"[-+]?(\d[\d_]*)?\.?\d*([eE][-+]?\d+)?|[-+]?\.?(inf|nan)", text, re.IGNORECASE)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if numeric else None)


_Dumper.add_representer(str, _text_node)
_Dumper.add_multi_representer(PurePath, lambda dumper, path: _text_node(dumper, str(path)))


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write YAML that `yaml.safe_load` reads back with the same types (1e-5 stays a float), keys in order."""
    atomic_write_text(path, yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True))
