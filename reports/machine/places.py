"""Describes disks and data: free space, locks and links where runs are written; existing and missing data sets."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

DATA = Path("data")
WRITTEN = (DATA, Path("checkpoints"), Path("out"))
"""Folders below the working directory to which commands write."""


def disks() -> dict[str, dict[str, Any]]:
    """Folder -> free bytes and what its file system refuses; folders on the same disk share an entry."""
    disks: dict[int, dict[str, Any]] = {}
    for place in WRITTEN:
        there = next(one for one in (place, *place.absolute().parents) if one.is_dir())
        facts = {"folders": [], "free": shutil.disk_usage(there).free, "refuses": _refused(there)}
        entry = disks.setdefault(there.stat().st_dev, facts)
        entry["folders"].append(str(place))
    return {", ".join(entry.pop("folders")): entry for entry in disks.values()}


def _refused(folder: Path) -> list[str]:
    """Which of writing, locks and symbolic links a folder refuses, tested in a temporary folder in it."""
    try:
        place = tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-")
    except OSError as error:
        return [f"writing ({error.strerror})"]
    refused = []
    with place as name:
        try:
            import fcntl

            with (Path(name) / "lock").open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ImportError, OSError):
            refused.append("locks")
        try:
            os.symlink("lock", Path(name) / "link")
        except OSError:
            refused.append("links")
    return refused


def data_sets() -> list[dict[str, Any]]:
    """Path, source, counts and hash of each data set below data/, or what is wrong with it. Raises: ImportError."""
    from dataset.catalog import describe
    from engine.errors import UsageError

    cards = []
    for place in sorted(DATA.iterdir()) if DATA.is_dir() else []:
        if place.name.startswith(".") or not place.is_dir():
            continue
        try:
            card = describe(place)
        except UsageError as error:
            cards.append({"path": str(place), "fault": str(error)})
        except (OSError, ValueError, KeyError, TypeError) as error:  # one damaged data set must not hide the others
            cards.append({"path": str(place), "fault": f"{type(error).__name__}: {error}"})
        else:
            kept = ("path", "source", "counts", "content_hash", "stand_in", "modified")
            cards.append({key: card[key] for key in kept if card.get(key)})
    return cards


def missing_data(cards: list[dict[str, Any]]) -> dict[str, str]:
    """Published data sets that do not exist -> the command that builds them. Raises: ImportError."""
    from dataset.catalog import PUBLISHED, build_command

    here = {Path(one["path"]).name for one in cards}
    commands = {name: build_command(DATA / name) for name in PUBLISHED if name not in here}
    return {name: command for name, command in commands.items() if command}


def readable_size(size: int) -> str:
    """Bytes as `12.3 GB`."""
    return f"{size / 1e9:.1f} GB"


def counts_in_words(counts: Any) -> str:
    """`{"train": {"groups": 64, ...}, ...}` -> `train 64 groups, 64 puzzles; test ...`."""
    words = []
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        for split, numbers in counts.items():
            words.append(f"{split} " + ", ".join(f"{number:,} {what}" for what, number in numbers.items()))
    return "; ".join(words)
