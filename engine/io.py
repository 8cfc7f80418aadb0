"""Atomic files (complete or absent), locks that end with their process, and printing on rank 0.

Everything a run writes for others to read goes through here: it is written under a temporary name in the same folder,
fsynced and renamed, so that a reader, or a kill -9, finds the old file or the new one, never a partial one.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

# Names imported "as" themselves are re-exported for packages that may import only this module.
from engine.cli.console import as_typed, begin as begin, execute as execute
from engine.errors import RunFailure as RunFailure, UsageError as UsageError
from engine.reading import (
    Unreadable as Unreadable,
    check_regular as check_regular,
    open_regular as open_regular,
    read_bytes as read_bytes,
    read_json as read_json,
    read_object as read_object,
    reason_of as reason_of,
)
from engine.signals import leave_to_parent as leave_to_parent, on_main_rank

T = TypeVar("T")
# `.<name>.tmp-<pid>-<n>`: hidden, and in the same folder so that the rename never crosses file systems
TEMPORARY = ".tmp-"
# `.<name>.old-<pid>-<n>`: a directory moved aside while its successor is renamed into place
REPLACED = ".old-"
QUIET_SECONDS = 20.0
_counter = itertools.count()
_without_links: set[Path] = set()


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sibling(path: Path, mark: str) -> Path:
    """A free name in the folder of `path`: in containers, an earlier process may have had the same pid."""
    while True:
        sibling = path.parent / f".{path.name}{mark}{os.getpid()}-{next(_counter)}"
        if not os.path.lexists(sibling):
            return sibling


def is_leftover(name: str) -> bool:
    """Whether `name` is that of a killed writer's temporary file."""
    return name.startswith(".") and (TEMPORARY in name or REPLACED in name)


def fsync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names inside `path` durable. Ignored on file systems that cannot sync a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file `path` by `data` atomically. Parents are created; on any error the old file is unchanged.

    Raises: OSError (disk full, no permission), after removing the temporary file.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(final, TEMPORARY)
    try:
        with open(temporary, "xb") as stream:  # x: never follow a link of that name
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _add_filename(error, final)
        raise
    fsync_directory(final.parent)


def _add_filename(error: BaseException, path: Path) -> None:
    """Add the file name to an OSError of a write, which the system reports without one."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """`atomic_write_bytes` for UTF-8 text."""
    atomic_write_bytes(path, text.encode("utf-8"))


def _plain(value: Any) -> Any:
    """Convert what json refuses: paths, and the scalars and arrays of numpy and torch."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, keys in the given order. Raises: TypeError for what JSON cannot represent."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


@contextlib.contextmanager
def atomic_directory(final: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary directory that becomes `final` at a clean exit, and is removed on any error.

    All files inside and the directories themselves are fsynced before the rename.

    Raises: FileExistsError if `final` exists, unless `replace`: then the old directory is moved aside, the new one
    renamed into place, the old one removed (`remove_leftovers` repairs a kill between the renames). Also if another
    writer has made `final` in the meantime: its files stay.
    """
    final = Path(final)
    exists = FileExistsError(errno.EEXIST, "exists already, remove it or choose another folder", str(final))
    if final.exists() and not replace:
        raise exists
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(final, TEMPORARY)
    temporary.mkdir()
    old: Path | None = None
    try:
        yield temporary
        _fsync_tree(temporary)
        if replace and final.exists():
            old = _sibling(final, REPLACED)
            os.rename(final, old)
        os.rename(temporary, final)
    except BaseException as error:
        _add_filename(error, final)
        shutil.rmtree(temporary, ignore_errors=True)
        if old is not None and old.exists() and not final.exists():
            os.rename(old, final)
        if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
            raise exists from None
        raise
    fsync_directory(final.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _fsync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as stream:
                os.fsync(stream.fileno())
        fsync_directory(folder)


def remove_leftovers(folder: str | os.PathLike[str]) -> list[str]:
    """Remove what killed writers left in `folder`; return the names. Only for the holder of a lock on it.

    A directory that was moved aside, but not replaced, is moved back instead.
    """
    folder = Path(folder)
    leftovers = sorted(entry for entry in folder.iterdir() if is_leftover(entry.name)) if folder.is_dir() else []
    for entry in leftovers:
        original = folder / entry.name[1:].rpartition(REPLACED)[0]
        if REPLACED in entry.name and not os.path.lexists(original):
            os.rename(entry, original)
        elif entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return [entry.name for entry in leftovers]


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path with a leading `~` or `~name` expanded: shells do not expand it in `--flag=~/x`."""
    return Path(os.path.expanduser(text))


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal sha256 of a JSON value, independent of key order and white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    # Round trip through JSON: keys that were not strings become strings before they are sorted.
    text = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def make_link(place: Path, target: str) -> None:
    """Make `place` a relative link to `target`. A convenience: a failure is only a warning, once per folder."""
    if place.parent in _without_links or (place.is_symlink() and os.readlink(place) == target):
        return
    temporary = _sibling(place, TEMPORARY)
    try:
        if place.exists() and not place.is_symlink():
            raise FileExistsError(errno.EEXIST, f"{place.name} exists and is not a link", str(place))
        temporary.symlink_to(target)
        os.replace(temporary, place)
    except OSError as error:
        _without_links.add(place.parent)
        with contextlib.suppress(OSError):
            temporary.unlink()
        print_rank0(f"warning: no link {place} to {target} ({error.strerror}): only the short names are missing")


def remove_directory(path: str | os.PathLike[str]) -> None:
    """Remove a directory; a kill in between leaves no partial one under its name. Raises: OSError."""
    renamed = _sibling(Path(path), TEMPORARY)
    os.rename(path, renamed)
    renamed.unlink() if renamed.is_symlink() else shutil.rmtree(renamed)


@contextlib.contextmanager
def file_lock(path: str | os.PathLike[str], *, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is created if missing and contains the holder's pid.

    The kernel releases the lock when the process ends, in whatever way. The file stays: a removed lock file could be
    locked twice, by its old and its new inode. A file system without locks (some network ones) gives a warning.

    Raises: UsageError if another process holds it and `wait` is false, or `path` is a link; OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked_handle(path, wait)
    try:
        with contextlib.suppress(OSError):  # on a full disk the lock works, but without the holder's pid
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _locked_handle(path: Path, wait: bool) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise UsageError(f"{path} is a symbolic link, not one of our locks: remove it") from None
        try:
            _flock(handle, path, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder may have been renamed while we waited: then we hold the lock of another path.
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BlockingIOError:
            holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise UsageError(
                f"{path.parent} is in use by another process (pid {holder}): "
                "wait for it, stop it, or choose another folder"
            ) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _flock(handle: int, path: Path, how: int) -> None:
    try:
        fcntl.flock(handle, how)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL):
            raise
        print_rank0(f"warning: no lock on {path.parent} ({error.strerror}): make sure that no other process uses it")


def print_rank0(line: str) -> None:
    """Print one line on rank 0 (by the environment's RANK) and flush."""
    if on_main_rank():
        sys.stdout.write(f"{as_typed(line)}\n")
        sys.stdout.flush()


def progress(iterable: Iterable[T], *, total: int | None = None, label: str = "") -> Iterator[T]:
    """Iterate with a progress bar on a terminal, else with a line on stderr for each tenth of `total`; only on rank 0.

    There is no line within `QUIET_SECONDS` of the start or of the last line, so none for short work.
    """
    if not on_main_rank():
        yield from iterable
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(iterable, description=label, total=total, console=Console(stderr=True), transient=True)
        return
    start = printed_at = time.monotonic()
    printed = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        tenths, now = 10 * done // total if total else 0, time.monotonic()
        if printed < tenths < 10 and now - printed_at >= QUIET_SECONDS:
            printed, printed_at, left = tenths, now, (now - start) / done * ((total or done) - done)
            sys.stderr.write(f"{label}: {done} of {total} after {now - start:.0f} s, about {left:.0f} s left\n")


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The end of an error line: `did you mean 'x'?` if a choice is similar, else the choices (at most 20)."""
    known = sorted({str(choice) for choice in choices})
    words = sorted(name.lower().split("_"))
    near = [choice for choice in known if sorted(choice.lower().split("_")) == words]  # in another order or case
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    if not known:
        return "there is nothing to choose from"
    more = f", … ({len(known) - 20} more)" if len(known) > 20 else ""
    return "choose one of " + ", ".join(known[:20]) + more
