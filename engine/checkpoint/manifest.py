"""Checkpoint directories on disk, format version 1: writing, verifying, naming what is damaged.

`step_<N>/` holds model.safetensors, ema.safetensors (optional), state.safetensors, state.json and manifest.json (see
`write_checkpoint` for its fields). None of them can contain code.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.checkpoint.state_tree import (
    clean_names,
    join_tree,
    read_tensors,
    split_tree,
    tensor_file_fault,
    write_tensors,
)
from engine.errors import UsageError
from engine.io import atomic_write_json, sha256_file, sha256_json
from engine.reading import Unreadable, check_regular, read_json, reason_of

FORMAT_VERSION = 1
REQUIRED = ("model.safetensors", "state.safetensors", "state.json")
OPTIONAL = ("ema.safetensors",)
STEP_NAME = re.compile(r"step_([0-9]+)")


Manifest = dict[str, Any]
"""manifest.json: see `write_checkpoint` for its fields; `read_manifest` validates them."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint with fields of its manifest. Tensors are read, to the CPU, on access."""

    path: Path
    manifest: Manifest
    step: int
    """Optimizer steps taken when it was written."""
    entry: str
    """The script that wrote it ("pretrain"): evaluation rebuilds the run with that script's `build`."""
    config: dict[str, Any]
    """The resolved config of the run."""
    metric: dict[str, Any] | None
    """The primary metric {"name", "value", "goal": "max" | "min"}, None before any evaluation."""
    extra: dict[str, Any]
    """Further facts of the run (sizes of the metric files, data cards, sha256 of frozen parts)."""

    @property
    def has_ema(self) -> bool:
        """Whether averaged weights were saved."""
        return "ema.safetensors" in self.manifest["files"]

    @property
    def model(self) -> dict[str, Tensor]:
        """Raw weights by clean name."""
        return read_tensors(self.path / "model.safetensors")

    @property
    def ema(self) -> dict[str, Tensor] | None:
        """Averaged weights by clean name, None if the run keeps no average."""
        return read_tensors(self.path / "ema.safetensors") if self.has_ema else None

    def state(self, *, rank: int = 0, world_size: int = 1) -> Any:
        """The state tree; row-sharded leaves are plain tensors with the rows of `rank` (see `join_tree`).

        Raises: UsageError if state.json and state.safetensors do not match.
        """
        tree, tensors = read_json(self.path / "state.json"), read_tensors(self.path / "state.safetensors")
        try:
            return join_tree(tree, tensors, rank=rank, world_size=world_size)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"checkpoint {self.path}: state.json does not fit state.safetensors ({error})") from None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a checkpoint to write."""

    step: int
    model: Mapping[str, Tensor]
    config: Mapping[str, Any]
    """Resolved."""
    ema: Mapping[str, Tensor] | None = None
    state: Any = None
    """A tree whose `RowSharded` leaves already hold all rows (`gather_tree`, called on every rank)."""
    metric: Mapping[str, Any] | None = None
    """{"name", "value", "goal": "max" | "min"}; a non-finite value counts as none."""
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_checkpoint(folder: Path, entry: str, contents: Contents) -> None:
    """Write a checkpoint into the empty `folder`. manifest.json is written last and holds format_version, entry, step,
    config (resolved), time (UTC, ISO 8601), metric, extra, files {name: {sha256, size}} and a sha256 of all of that.

    Raises: OSError, TypeError (a state leaf that is neither tensor nor JSON).
    """
    tensors, json_tree = split_tree(contents.state)
    write_tensors(folder / "model.safetensors", clean_names(contents.model))
    if contents.ema is not None:
        write_tensors(folder / "ema.safetensors", clean_names(contents.ema))
    write_tensors(folder / "state.safetensors", tensors)
    atomic_write_json(folder / "state.json", json_tree)
    manifest: Manifest = {
        "format_version": FORMAT_VERSION,
        "entry": entry,
        "step": contents.step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(),
        "metric": dict(contents.metric) if contents.metric and _is_metric(contents.metric) else None,
        "extra": dict(contents.extra),
        "config": dict(contents.config),
        "files": {
            path.name: {"sha256": sha256_file(path), "size": path.stat().st_size} for path in sorted(folder.iterdir())
        },
    }
    manifest["sha256"] = sha256_json(manifest)
    atomic_write_json(folder / "manifest.json", manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, validated; other files are not checked.

    Raises: ValueError whose text begins with the file's name and states the fault.
    """
    path = folder / "manifest.json"
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise ValueError("manifest.json is missing") from None
    except (OSError, Unreadable) as error:
        raise ValueError(f"manifest.json {reason_of(error)}") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ValueError("manifest.json is not the manifest of a checkpoint (no format_version)")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"manifest.json has format_version {version}, this program reads up to {FORMAT_VERSION}: update the program"
        )
    kinds = {"entry": str, "step": int, "time": str, "config": dict, "files": dict, "extra": dict}
    invalid = [key for key, kind in kinds.items() if type(manifest.get(key)) is not kind]
    invalid += ["step"] if not invalid and manifest["step"] < 0 else []
    invalid += ["metric"] if not _is_metric(manifest.get("metric")) else []
    invalid += ["extra"] if not invalid and not _are_sizes(manifest["extra"].get("sizes", {})) else []
    if invalid:
        raise ValueError(f"manifest.json lacks a usable '{invalid[0]}'")
    return manifest  # type: ignore[no-any-return]


def _is_metric(value: Any) -> bool:
    """Whether `value` is null, or a name, a goal and a finite number."""
    if not isinstance(value, Mapping):
        return value is None
    number = type(value.get("value")) in (int, float) and math.isfinite(value["value"])
    return number and isinstance(value.get("name"), str) and value.get("goal") in ("max", "min")


def _are_sizes(value: Any) -> bool:
    """Whether `value` maps plain file names to sizes."""
    return isinstance(value, dict) and all(
        "/" not in name and type(size) is int and size >= 0 for name, size in value.items()
    )


def find_fault(folder: Path, *, checksums: bool = True) -> str | None:
    """What is wrong with the checkpoint in `folder` (first word: the file), None if it is valid.

    Checks all files before any is used; `checksums=False` skips only the hashing (on ranks other than 0).
    """
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        return str(error)
    files = manifest["files"]
    for name in REQUIRED:
        if name not in files:
            return f"manifest.json does not list {name}"
    for name, expected in files.items():
        fault = _file_fault(folder, name, expected, checksums)
        if fault:
            return f"{name} {fault}"
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != sha256_json(body):
        return "manifest.json does not match its own checksum (damaged or edited)"
    named = STEP_NAME.fullmatch(folder.name)
    if named and int(named[1]) != manifest["step"]:
        return f"manifest.json has step {manifest['step']}, the folder is {folder.name}"
    return None


def _file_fault(folder: Path, name: str, expected: Any, checksums: bool) -> str | None:
    if name not in REQUIRED + OPTIONAL:
        return f"is listed in the manifest but does not belong there (expected {', '.join(REQUIRED + OPTIONAL)})"
    if not isinstance(expected, dict) or not {"size", "sha256"} <= expected.keys():
        return "has no size and checksum in manifest.json"
    path = folder / name
    try:
        check_regular(path)
        if path.stat().st_size != expected["size"]:
            return f"is {path.stat().st_size} bytes instead of {expected['size']} (cut off or replaced)"
        if checksums and sha256_file(path) != expected["sha256"]:
            return "does not match its checksum (damaged or replaced)"
        if path.suffix == ".safetensors":
            return tensor_file_fault(path)
        read_json(path)
    except FileNotFoundError:
        return "is missing"
    except (OSError, Unreadable) as error:
        return reason_of(error)
    return None


def step_folders(checkpoints: Path) -> dict[int, Path]:
    """{step: folder} of the complete (not verified) checkpoints in `checkpoints`, ascending. Links are ignored: only
    folders are the run's own checkpoints.
    """
    folders = {}
    for path in checkpoints.iterdir() if checkpoints.is_dir() else []:
        named = STEP_NAME.fullmatch(path.name)
        if named and (path / "manifest.json").is_file() and not path.is_symlink():
            folders[int(named[1])] = path
    return dict(sorted(folders.items()))


def previous_good(checkpoints: Path, before: int) -> Path | None:
    """The newest checkpoint in `checkpoints` of a step below `before` that verifies completely."""
    earlier = [path for step, path in step_folders(checkpoints).items() if step < before]
    return next((path for path in reversed(earlier) if find_fault(path) is None), None)


def load_checkpoint(path: str | Path, *, checksums: bool = True, resuming: bool = True) -> Checkpoint:
    """Verify every file of the checkpoint directory `path` (links are followed) and open it.

    Raises: UsageError in one line: which file of which checkpoint, what is wrong, the previous good one; and how to
    resume from that, if this launch is `resuming`.
    """
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise UsageError(f"checkpoint {path}: no such directory")
    fault = find_fault(folder, checksums=checksums)
    if fault is None:
        manifest = read_manifest(folder)
        fields = ("step", "entry", "config", "metric", "extra")
        return Checkpoint(folder, manifest, **{name: manifest[name] for name in fields})
    named = STEP_NAME.fullmatch(folder.name)
    good = previous_good(folder.parent, int(named[1])) if named else None
    if good is None:
        offer = "no earlier one is intact" + (": resume=false starts again" if resuming else "")
    else:
        offer = "the previous good one is " + (f"{good.name}: add resume_from={good.name}" if resuming else str(good))
    raise UsageError(f"checkpoint {path}: {fault}; {offer}")
