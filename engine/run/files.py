"""Small readers and writers of a run directory's files: JSON, YAML, line files, path patterns."""

from __future__ import annotations

import datetime
import glob
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from engine import reading
from engine.errors import UsageError
from engine.fields import flatten
from engine.io import atomic_write_text, print_rank0


def read_identity(run: Path, entry: str) -> dict[str, Any]:
    """identity.json of a run, {} where there is none. Raises: UsageError: the run is of another script than `entry`."""
    stored = read_json(run / "identity.json")
    if stored and stored.get("entry") != entry:
        raise UsageError(f"{run} is a run of {stored.get('entry')}.py, not of {entry}.py")
    return stored


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} when there is none or it is damaged."""
    try:
        value = reading.read_json(path)
    except (OSError, reading.Unreadable):
        return {}
    return value if isinstance(value, dict) else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file that `write_yaml` wrote, {} when there is none or it is damaged."""
    try:
        value = yaml.safe_load(reading.read_yaml(path))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def data_hashes(run_dir: Path) -> dict[str, str]:
    """Path -> content hash of the data sets that the run began with (environment.json); empty where there are none."""
    cards = read_json(run_dir / "environment.json").get("data_cards")
    known = [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []
    pairs = [(card.get("path"), card.get("content_hash")) for card in known]
    return {path: made for path, made in pairs if isinstance(path, str) and isinstance(made, str)}


def is_finished(path: Path) -> bool:
    """Whether the run ended well. A "running" whose process is gone (kill -9) is not finished."""
    return read_json(path / "status.json").get("state") == "done"


def truncate_to(path: Path, size: int) -> int:
    """Cut a line file back to `size` bytes and drop a half-written last line; returns the bytes that remain.

    A file that is missing or already shorter (lines lost with the machine's power) is kept, with a warning.
    """
    if not path.exists():
        if size:
            print_rank0(f"warning: {path} is missing, its lines before this point are lost; a new file begins")
        return 0
    present = path.stat().st_size
    if present < size:
        print_rank0(f"warning: {path} has {present} bytes instead of {size} at the checkpoint: some lines are lost")
    with open(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b") as stream:
        end = min(size, present)
        while end > 0:  # back to just behind the last line end
            begin = max(0, end - 65536)
            stream.seek(begin)
            newline = stream.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
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
    """NaN and infinities as null, for readers that know strict JSON only."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """YAML that every reader types alike: text such as `1e-4`, a number to OmegaConf, is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    numeric = re.fullmatch(r"[-+]?(\d[\d_]*)?\.?\d*([eE][-+]?\d+)?|[-+]?\.?(inf|nan)", text, re.IGNORECASE)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if numeric else None)


_Dumper.add_representer(str, _text_node)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """YAML that `yaml.safe_load` reads back with the same types (1e-5 stays a float), keys in order."""
    atomic_write_text(path, yaml.dump(_plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def expand_pattern(unresolved: str, key: str = "run_dir") -> str:
    """The value of `key` in the YAML text `unresolved`, references to other keys replaced by their own text.

    `run_dir: out/${run_name}` with `run_name: x_${now:%H}` -> `out/x_${now:%H}`; resolver calls stay.
    """
    config = yaml.safe_load(unresolved) or {}

    def text_of(match: re.Match[str]) -> str:
        node: Any = config
        for part in match[1].split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return match[0] if node is None or isinstance(node, Mapping | list) else str(node)

    pattern = str(config.get(key) or "")
    for _ in range(10):  # references nest a few levels deep; a circle ends here
        expanded = re.sub(r"\$\{([A-Za-z_][\w.]*)\}", text_of, pattern)
        if expanded == pattern:
            break
        pattern = expanded
    return pattern


def to_glob(pattern: str) -> str:
    """`runs/${name}_${now:%Y/%H}` -> `runs/*_*/*`: interpolations (nested ones too) become wildcards.

    Every candidate is compared by identity afterwards, so a wildcard too many finds no wrong run.
    """
    out, depth, inside = "", 0, ""
    position = 0
    while position < len(pattern):
        if pattern.startswith("${", position):
            depth += 1
            position += 2
            continue
        letter = pattern[position]
        position += 1
        if depth == 0:
            out += glob.escape(letter)
        elif letter == "}":
            depth -= 1
            if depth == 0:
                out += "/".join("*" * (inside.count("/") + 1)) if inside.startswith("now") else "*"
                inside = ""
        else:
            inside += letter
    return out


def changes(old: Any, new: Mapping[str, Any], limit: int = 4) -> str:
    """`lr 0.1 -> 0.2, arch.depth 2 -> 3`: the leaves that differ between two identities."""

    def leaves(node: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in flatten(node) if not isinstance(value, Mapping)}

    before, after = leaves(old if isinstance(old, Mapping) else {}), leaves(json.loads(json.dumps(new, default=str)))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    parts = [f"{name} {before.get(name)} -> {after.get(name)}" for name in names[:limit]]
    return ", ".join(parts) + (f" and {len(names) - limit} more" if len(names) > limit else "")
