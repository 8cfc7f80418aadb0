"""Checks of a run directory before a run uses it (other runs, leftovers, links that lead out), and setting runs aside.

A run writes, moves and deletes only its own files. Other runs inside its folder (`out/a` inside `out`) stay where they
are.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Collection
from pathlib import Path

from engine.errors import UsageError
from engine.io import atomic_write_text, fsync_directory, is_leftover, remove_leftovers

OWN_FOLDERS = ("checkpoints", "tensorboard", "wandb", "profile", "samples", "evaluations")
OWN_FILES = (
    "identity.json",
    "config.yaml",
    "config.resolved.yaml",
    "all_config.yaml",
    "overrides.txt",
    "environment.json",
    "path_signature.json",
    "metrics.jsonl",
    "metrics.csv",
    "status.json",
    "summary.json",
    "wandb_id.txt",
    ".lock",
    "vocabularies.json",
    "best_val_loss_and_iter.txt",
)
# What a launcher, Hydra or the preflight may leave in a directory before it becomes a run.
NOT_A_RUN_YET = {".lock", ".hydra", "status.json", "path_signature.json"}
SET_ASIDE = ".set_aside"
"""File with the new name of a run that is set aside, written before its files are moved and kept afterwards."""


def contents(path: Path) -> set[str]:
    """Names in `path`, without those in NOT_A_RUN_YET and temporary files of killed writers.

    Raises: UsageError for a directory that cannot be read.
    """
    try:
        names = set(os.listdir(path)) if path.is_dir() else set()
    except OSError as error:
        raise UsageError(f"run_dir={path} cannot be read ({error.strerror}): choose another run_dir") from None
    return {name for name in names - NOT_A_RUN_YET if not is_leftover(name)}


def _run_below(entry: Path) -> Path | None:
    """The first run in `entry`."""
    if entry.is_symlink():  # a run on another disk, reached through the link; not walked
        return entry if (entry / "identity.json").exists() else None
    for folder, _, names in os.walk(entry):
        if "identity.json" in names or ".lock" in names:
            return Path(folder)
    return None


def require_room(path: Path) -> dict[str, Path]:
    """Check that a run may start at `path`; return the other runs inside it, by the top names that contain them.

    Raises: UsageError for a folder that is neither empty nor a run, and for runs inside a run's own folders.
    """
    for parent in path.absolute().parents:
        inside = path.absolute().relative_to(parent).parts[0]
        if inside in OWN_FOLDERS and (parent / "identity.json").exists():
            raise UsageError(f"run_dir={path} is inside {inside}/ of the run {parent}: choose another run_dir")
    names = contents(path)
    is_run = "identity.json" in names or moving_to(path) is not None
    refusal = f"run_dir={path} is not empty and not a run: choose another run_dir, or empty it"
    if not is_run and any(not (path / name).is_dir() for name in names):
        raise UsageError(refusal)
    others = {name: run for name in sorted(names) if (run := _run_below(path / name)) is not None}
    if not is_run and names - others.keys():
        raise UsageError(refusal)
    for name in OWN_FOLDERS:
        if name in others:
            raise UsageError(
                f"run_dir={path}: another run, {others[name]}, is in the folder {name}/ that this one needs for "
                "itself: choose another run_dir"
            )
    return others


def moving_to(path: Path) -> Path | None:
    """Where a killed process was moving the run at `path`; None if no move is unfinished."""
    name = _marker(path)
    target = path.with_name(name) if name and re.fullmatch(re.escape(path.name) + r"\.\d+", name) else None
    return target if target is not None and target.is_dir() and not target.is_symlink() else None


def is_set_aside(path: Path) -> bool:
    """Whether `path` is a run that was renamed to make room for another."""
    return _marker(path) in ("", path.name)


def _marker(path: Path) -> str | None:
    try:
        return (path / SET_ASIDE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def set_aside(path: Path, others: Collection[str]) -> Path:
    """Move the run at `path` to `<path>.1` (the next free number) and return that; the entries `others` stay.

    The caller holds the lock. After a kill, the next call completes the move. Raises: UsageError.
    """
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    target = moving_to(path) or next(place for place in numbered if not os.path.lexists(place))
    try:
        atomic_write_text(path / SET_ASIDE, f"{target.name}\n")
        if others or target.exists():
            target.mkdir(exist_ok=True)
            names = [name for name in os.listdir(path) if name not in others and name != ".lock"]
            for name in sorted(names, key=lambda name: (name == SET_ASIDE, name == "identity.json")):
                os.rename(path / name, target / name)
            fsync_directory(target)
        else:
            os.rename(path, target)
        fsync_directory(path.parent)
    except OSError as error:
        raise UsageError(f"{path} is in the way and cannot be renamed ({error.strerror})") from None
    return target


def clear_leftovers(path: Path) -> None:
    """Remove what killed writers left in the run directory. Only while holding its lock."""
    for folder in (path, *(path / name for name in OWN_FOLDERS)):
        if folder == path or not folder.is_symlink():
            remove_leftovers(folder)


def require_own(path: Path) -> None:
    """Refuse a run directory with a link that leads out of it: files outside would be truncated or deleted.

    Raises: UsageError that names the link.
    """
    home = path.resolve()
    places = [path / name for name in OWN_FILES + OWN_FOLDERS]
    for folder in (path / name for name in OWN_FOLDERS if name != "wandb"):  # wandb's own links stay in its folder
        if folder.is_dir() and not folder.is_symlink():
            places += [entry for entry in folder.iterdir() if not is_leftover(entry.name)]
    for place in places:
        if place.is_symlink() and _is_loop(place):
            raise UsageError(f"{place} is a symbolic link that points to itself: remove it")
        if place.is_symlink() and not place.resolve().is_relative_to(home):
            raise UsageError(
                f"{place} is a symbolic link that points out of the run directory, and a run writes only into its own "
                "folder: remove the link, or name the place itself as run_dir"
            )


def _is_loop(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
