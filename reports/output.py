"""Writes results: a report's files in a folder, a page, or a JSON file; checks targets before the work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from engine.errors import UsageError
from engine.io import atomic_write_bytes, atomic_write_json, atomic_write_text, print_rank0
from reports.canvas import as_png

HEAD = 8192
"""First bytes of a file, in which its mark must be."""


@contextmanager
def writing(target: Path, other: str) -> Iterator[None]:
    """What cannot be written in this block is a UsageError that asks for another `other` (`file with --out`)."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror}): name another {other}") from None
    except UnicodeEncodeError as error:
        name = error.object[max(0, error.start - 40) : error.end]
        raise UsageError(f"{target} cannot be written (a name that is not UTF-8, ...{name!r}): rename it") from None


def write_json_result(target: Path, content: Mapping[str, Any]) -> None:
    """Write JSON and print its path. Raises: UsageError if it cannot be written."""
    with writing(target, "file with --json"):
        atomic_write_json(target, content)
    print_rank0(f"written     {target}")


def write_beside(target: Path, content: str | bytes) -> None:
    """Write text or a picture that belongs to a JSON result. Raises: UsageError if it cannot be written."""
    with writing(target, "file with --json"):
        atomic_write_bytes(target, content.encode() if isinstance(content, str) else content)
    print_rank0(f"written     {target}")


def check_json_target(target: Path | None) -> None:
    """Check before the work that a result can be written. Raises: UsageError."""
    if target is None:
        return
    if target.suffix.lower() == ".png":
        raise UsageError(
            f"--json {target}: figures are written as JSON: name a file such as {target.with_suffix('.json')}"
        )
    try:
        check_own(target, b'{\n  "settings": {', "result of an evaluation", example="evaluation.json", flag="--json")
    except UsageError as error:
        raise UsageError(f"--json {error}") from None


def write_report(folder: Path, files: Mapping[str, str | Image.Image | Mapping[str, Any]]) -> None:
    """Write files by the type of their content: text, a picture (PNG) or a mapping (JSON).

    Raises:
        UsageError: the folder cannot be written.
    """
    with writing(folder, "folder with --out"):
        for name, content in files.items():
            if isinstance(content, str):
                atomic_write_text(folder / name, content)
            elif isinstance(content, Image.Image):
                atomic_write_bytes(folder / name, as_png(content))
            else:
                atomic_write_json(folder / name, content)


def check_place(target: Path, *, example: str) -> None:
    """Check before the work that a file can be written at `target`. Raises: UsageError."""
    place = next(folder for folder in target.absolute().parents if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UsageError(f"{target} cannot be written ({place} is {'read-only' if place.is_dir() else 'not a folder'})")
    try:
        tempfile.TemporaryFile(dir=place).close()  # permissions are no proof, for example in /proc
    except OSError:
        raise UsageError(f"{target} cannot be written (no file can be made in {place})") from None
    if target.is_dir():
        raise UsageError(f"{target} is a folder: name a file in it, such as {target / example}")


def check_own(target: Path, mark: bytes, kind: str, *, example: str, flag: str = "--out") -> None:
    """Check that a command would only replace a file that it wrote itself, recognised by `mark` in its `HEAD`.

    Raises: UsageError if `target` is a folder or another file, or cannot be written.
    """
    check_place(target, example=example)
    try:
        with open(target, "rb") as stream:
            ours = mark in stream.read(HEAD)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror}): name another file with {flag}") from None
    if not ours:
        raise UsageError(f"{target} exists and is not a {kind}: remove it or name another with {flag}")


def write_page(target: Path, page: str) -> None:
    """Write an HTML page and print its path. Raises: UsageError if it cannot be written."""
    with writing(target, "file with --out"):
        atomic_write_text(target, page)
    print_rank0(f"written     {target} ({len(page.encode()) / 1e6:.2f} MB)")


def prepare_folder(folder: Path) -> None:
    """Create a folder before the work, so that an unusable one is reported early. Raises: UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"{folder} is a file: name a folder with --out") from None
    except OSError as error:
        raise UsageError(f"{folder} cannot be created ({error.strerror}): name another folder with --out") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} is not writable: name another folder with --out")
