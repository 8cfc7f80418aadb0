"""Files that are complete or absent, locks that die with their process, and lines that are printed once.

Everything a run writes for others to read goes through here: it is written under a temporary name in the same
folder, fsynced and renamed, so a reader (or a kill -9) meets the old file or the new one, never half of one.
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

# Names imported "as" themselves are here for packages that may import only this module.
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
# `.<name>.tmp-<pid>-<n>`: hidden, and beside the final name so that the rename never crosses a file system
TEMPORARY = ".tmp-"
# `.<name>.old-<pid>-<n>`: a directory on its way out while its successor is renamed into place
REPLACED = ".old-"
QUIET_SECONDS = 20.0
_counter = itertools.count()
_without_links: set[Path] = set()


def _sibling(path: Path, mark: str) -> Path:
    """A free name beside `path`: in a container every process may have had this pid before."""
    while True:
        sibling = path.parent / f".{path.name}{mark}{os.getpid()}-{next(_counter)}"
        if not os.path.lexists(sibling):
            return sibling


def is_leftover(name: str) -> bool:
    """Whether a writer that was killed left a file of this name."""
    return name.startswith(".") and (TEMPORARY in name or REPLACED in name)


def fsync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names inside `path` durable. File systems that cannot sync a directory are left alone."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace `path` by `data` in one step. Parents are created; on any error the old file is untouched.

    Raises: OSError (disk full, no permission); the temporary file is removed first.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(final, TEMPORARY)
    try:
        with open(temporary, "xb") as stream:  # x: never through a link there
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _name(error, final)
        raise
    fsync_directory(final.parent)


def _name(error: BaseException, path: Path) -> None:
    """Name the file in an OSError of a write, which the system leaves without a name."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """`atomic_write_bytes` for UTF-8 text."""
    atomic_write_bytes(path, text.encode("utf-8"))


def _plain(value: Any) -> Any:
    """JSON values of what json refuses: paths, and the scalars and arrays of numpy and torch."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, keys in the given order. Raises TypeError on what JSON cannot hold."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


@contextlib.contextmanager
def atomic_directory(final: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary directory that becomes `final` at a clean exit, and vanishes on any error.

    Every file inside and the directories themselves are fsynced before the rename.

    Raises: FileExistsError when `final` exists, unless `replace`: then the old directory is moved aside, the
    new one renamed into place, the old one removed (`remove_leftovers` undoes a kill between the renames).
    """
    final = Path(final)
    if final.exists() and not replace:
        raise FileExistsError(errno.EEXIST, "exists already, remove it or choose another folder", str(final))
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
        _name(error, final)
        shutil.rmtree(temporary, ignore_errors=True)
        if old is not None and old.exists() and not final.exists():
            os.rename(old, final)
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
    """Clear what killed writers left in `folder`; returns the names. Only for the holder of a lock on it.

    A directory that was moved aside for a successor that never came is moved back instead.
    """
    done = []
    folder = Path(folder)
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not is_leftover(entry.name):
            continue
        home = folder / entry.name[1:].rpartition(REPLACED)[0]
        if REPLACED in entry.name and not os.path.lexists(home):
            os.rename(entry, home)
        elif entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
        done.append(entry.name)
    return done


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path as a person writes it: a leading `~` or `~name` is the home folder. Shells leave `--flag=~/x` alone."""
    return Path(os.path.expanduser(text))


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal sha256 of a JSON value, independent of key order and white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    # Through JSON once more: keys that were not strings are sorted as the strings they become.
    text = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def make_link(place: Path, target: str) -> None:
    """Make `place` a relative link to `target`. A convenience: a failure is a warning, once a folder."""
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
    """Remove a directory; a kill in the middle leaves no half of it under its name. Raises: OSError."""
    doomed = _sibling(Path(path), TEMPORARY)
    os.rename(path, doomed)
    doomed.unlink() if doomed.is_symlink() else shutil.rmtree(doomed)


@contextlib.contextmanager
def file_lock(path: str | os.PathLike[str], *, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is created when missing and names the holder's pid.

    The kernel drops the lock when the process ends, however it ends. The file stays: a removed lock file can
    be held twice, by its old and by its new inode. A file system without locks (some network ones) costs a warning.

    Raises: UsageError when another holder has it and `wait` is false, or `path` is a link; OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked_handle(path, wait)
    try:
        with contextlib.suppress(OSError):  # on a full disk the lock holds, only without the holder's pid
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
            # The folder may have been renamed while we waited: then this lock guards another place.
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
    """Print one line at once, on rank 0 only (RANK of the environment)."""
    if on_main_rank():
        sys.stdout.write(f"{as_typed(line)}\n")
        sys.stdout.flush()


def progress(iterable: Iterable[T], *, total: int | None = None, label: str = "") -> Iterator[T]:
    """Iterate with a bar on a terminal, elsewhere with a plain line on stderr for each tenth of `total`; on rank 0.

    There is no line within `QUIET_SECONDS` of the start or of the last one, so none of short work.
    """
    if not on_main_rank():
        yield from iterable
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(iterable, description=label, total=total, console=Console(stderr=True), transient=True)
        return
    began = printed_at = time.monotonic()
    printed = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        tenths, now = 10 * done // total if total else 0, time.monotonic()
        if printed < tenths < 10 and now - printed_at >= QUIET_SECONDS:
            printed, printed_at, left = tenths, now, (now - began) / done * ((total or done) - done)
            sys.stderr.write(f"{label}: {done} of {total} after {now - began:.0f} s, about {left:.0f} s left\n")


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """End of an error line: `did you mean 'x'?` when one choice is near, else the choices (at most 20)."""
    known = sorted({str(choice) for choice in choices})
    words = sorted(name.split("_"))
    near = [choice for choice in known if sorted(choice.split("_")) == words]  # the same words in another order
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    if not known:
        return "there is nothing to choose from"
    more = f", … ({len(known) - 20} more)" if len(known) > 20 else ""
    return "choose one of " + ", ".join(known[:20]) + more
