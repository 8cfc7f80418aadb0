"""The life of a run directory: going on, starting, setting a foreign run aside, and what is written into it.

Rank 0 alone calls this. `open_run` decides by the *identity* of the run (the config without device, logging,
budget and launch keys), locks the directory for the life of the process and says what it decided.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.checkpoint.store import CheckpointStore
from engine.errors import UsageError
from engine.io import atomic_write_json, file_lock, print_rank0, sha256_json
from engine.run.aside import (
    SET_ASIDE,
    clear_leftovers,
    contents,
    is_set_aside,
    moving_to,
    require_own,
    require_room,
    set_aside,
)
from engine.run.directory import RunDirectory
from engine.run.files import changes, now, read_json, to_glob, truncate_to
from engine.run.identity import Complete, same_run, without_later
from engine.run.identity import identity_of as identity_of  # callers know it by this module

METRIC_FILES = ("metrics.jsonl", "metrics.csv")

Resume = bool | Literal["auto", "true", "false"]


def open_run(
    path: str | os.PathLike[str],
    *,
    identity: Mapping[str, Any],
    entry: str,
    pattern: str | None = None,
    later: Collection[str] = (),
    complete: Complete | None = None,
    resume: Resume = "auto",
    resume_from: str | None = None,
) -> RunDirectory:
    """Decide which directory this run uses and whether it goes on there, lock it, and say so.

    `path` is the resolved run_dir, `pattern` the unresolved one: when it holds `${now:...}`, earlier runs of
    the same `identity` (`identity_of`) are found under other times. A run stored before the keys `later` existed is
    compared without them, and `complete` adds what an identity leaves to defaults. `resume`:

    - auto: an unfinished run of this identity goes on from its latest checkpoint (without one: starts over).
    - true: the latest checkpoint must exist, the run finished or not; changed keys are said.
    - false: always a new run.

    Whatever else is in the way is renamed `<path>.1` (the next free number). `resume_from` names a
    checkpoint: latest, best or step_N of this run (finished or not), or the path of any other, from which a
    new run branches off.

    Raises: UsageError: nothing to resume (names the folder searched), a live process in the directory (names
    its pid), a contradiction, a path that cannot be used.
    """
    claim = _claim(path, identity, entry, pattern, later, complete)
    try:
        return _open(claim, resume, resume_from)
    except OSError as error:
        place = f"{error.filename}: " if error.filename and Path(error.filename) != claim.path else ""
        raise UsageError(f"run_dir={path} cannot be used ({place}{error.strerror}): choose another run_dir") from None


def _open(claim: _Claim, resume: Resume, resume_from: str | None) -> RunDirectory:
    choice = _resume_choice(resume, resume_from)
    if claim.path.exists() and not claim.path.is_dir():
        raise UsageError(f"run_dir={claim.path} is a file: choose another run_dir")
    home, branch = claim.locate(resume_from)
    if branch and choice == "true":
        raise UsageError(
            f"resume=true goes on with run_dir, but resume_from={resume_from} lies in another run: "
            "leave resume=true out to branch off from it"
        )
    if choice == "true" or (resume_from and not branch and choice == "auto"):
        return claim.go_on(home or claim.resumable(), resume_from or "latest", branch=None)
    if choice == "auto" and (unfinished := claim.unfinished(branch)) is not None:
        return claim.go_on(unfinished, "latest", branch=branch)
    return claim.start(branch)


def record_refusal(
    path: str | os.PathLike[str], *, identity: Mapping[str, Any], entry: str, state: str, **fields: Any
) -> None:
    """Leave status.json for a launch that ended before it had its directory: a job runner reads it.

    Written only where nothing else lies, or into an unfinished run of the same identity that no process holds.
    """
    path = Path(path)
    claim = _claim(path, identity=identity, entry=entry, pattern=None)
    try:
        if contents(path) and (not claim.same(path) or is_finished(path)):
            return
        path.mkdir(parents=True, exist_ok=True)
        with _lock(path) as held:
            require_own(path)
            RunDirectory(path, "new", None, "", held).set_status(state, **fields)
    except (OSError, UsageError):  # what refused the launch is what the user has to read
        return


def find_branch(
    path: str | os.PathLike[str], *, identity: Mapping[str, Any], entry: str, pattern: str | None = None,
    later: Collection[str] = (),
    complete: Complete | None = None,
    resume: Resume = "auto", resume_from: str | None = None,
) -> Path | None:  # fmt: skip
    """The checkpoint of another run that `open_run` would begin a new run with; nothing is locked or changed."""
    claim = _claim(path, identity, entry, pattern, later, complete)
    _, branch = claim.locate(resume_from)
    goes_on = _resume_choice(resume, resume_from) == "auto" and claim.unfinished(branch) is not None
    return None if goes_on else branch


def find_resumable(
    path: str | os.PathLike[str],
    *,
    identity: Mapping[str, Any],
    entry: str,
    pattern: str | None = None,
    later: Collection[str] = (),
    complete: Complete | None = None,
) -> Path:
    """The run directory that `open_run(..., resume=True)` would go on in; nothing is locked or changed.

    Raises: UsageError that names the folder searched when there is no checkpoint to go on from.
    """
    return _claim(path, identity, entry, pattern, later, complete).resumable()


def find_unfinished(
    path: str | os.PathLike[str],
    *,
    identity: Mapping[str, Any],
    entry: str,
    pattern: str | None = None,
    later: Collection[str] = (),
    complete: Complete | None = None,
) -> Path | None:
    """The unfinished run of this identity that `open_run` would go on with, where it has a checkpoint."""
    found = _claim(path, identity, entry, pattern, later, complete).unfinished(None)
    return found if found is not None and CheckpointStore(found, entry).latest() is not None else None


def find_finished(
    path: str | os.PathLike[str],
    *,
    identity: Mapping[str, Any],
    entry: str,
    pattern: str | None = None,
    later: Collection[str] = (),
    complete: Complete | None = None,
) -> Path | None:
    """The newest finished run of this identity at `path` or at other times of `pattern`."""
    claim = _claim(path, identity, entry, pattern, later, complete)
    return next((place for place in claim.siblings() if claim.same(place) and is_finished(place)), None)


def _claim(
    path: str | os.PathLike[str], identity: Mapping[str, Any], entry: str, pattern: str | None,
    later: Collection[str] = (),
    complete: Complete | None = None,
) -> _Claim:  # fmt: skip
    timed = pattern if pattern and "${now" in pattern else None
    return _Claim(Path(path), timed, identity, tuple(later), entry, complete or dict)


def _resume_choice(resume: Resume, resume_from: str | None) -> str:
    choice = str(resume).lower()
    if choice not in ("auto", "true", "false"):
        raise UsageError(f"resume={resume}: choose one of auto, true, false")
    if choice == "false" and resume_from and _is_pointer(resume_from):
        raise UsageError(f"resume=false contradicts resume_from={resume_from}: leave one of them out")
    return choice


def _is_pointer(spec: str) -> bool:
    return spec in ("latest", "best") or re.fullmatch(r"step_\d+", spec) is not None


def is_finished(path: Path) -> bool:
    """Whether the run ended well. A "running" whose process is gone (kill -9) is not finished."""
    return read_json(path / "status.json").get("state") == "done"


@dataclass(frozen=True)
class _Claim:
    """What a launch asks for: a path (and its time-stamped pattern) and an identity."""

    path: Path
    pattern: str | None
    identity: Mapping[str, Any]
    later: tuple[str, ...]
    """Dotted keys that came later: a run from before them is compared without them."""
    entry: str
    complete: Complete

    # --- looking

    def same(self, path: Path, branch: Path | None = None) -> bool:
        """Whether `path` is a run of this identity (that began at `branch`, if one is given)."""
        stored = read_json(path / "identity.json")
        if moving_to(path) is not None or (branch and stored.get("branch") != str(branch)):
            return False
        if stored.get("entry") != self.entry:
            return False
        if stored.get("identity") == sha256_json(self.identity):
            return True
        known = stored.get("config")
        return isinstance(known, dict) and same_run(known, self.identity, later=self.later, complete=self.complete)

    def siblings(self) -> list[Path]:
        """The run directory and those of other times, newest first; runs that were set aside stay out."""
        found = {self.path} if self.path.is_dir() else set()
        if self.pattern:
            times = [Path(name) for name in glob.glob(to_glob(self.pattern)) if os.path.isdir(name)]
            found |= {place for place in times if not is_set_aside(place)}
        return sorted(found, key=lambda p: (read_json(p / "status.json").get("time") or "", p.name))[::-1]

    def locate(self, resume_from: str | None) -> tuple[Path | None, Path | None]:
        """What a `resume_from` path means: (run to go on in, None) or (None, checkpoint of another run)."""
        if resume_from is None or _is_pointer(resume_from):
            return None, None
        target = CheckpointStore(self.path, self.entry).resolve(resume_from)
        homes = [self.path, *(p for p in self.siblings() if self.same(p))]
        home = next((p for p in homes if target.is_relative_to(p.resolve())), None)
        return (home, None) if home else (None, target)

    def unfinished(self, branch: Path | None) -> Path | None:
        """The newest unfinished run of this identity."""
        return next((p for p in self.siblings() if self.same(p, branch) and not is_finished(p)), None)

    def resumable(self) -> Path:
        """The path itself when it has a checkpoint, else the newest run of this identity that has one."""
        places = [] if moving_to(self.path) else [self.path]
        for candidate in [*places, *(p for p in self.siblings() if self.same(p))]:
            if CheckpointStore(candidate, self.entry).latest():
                return candidate
        also = f" (nor, for this config, in any {to_glob(self.pattern)})" if self.pattern else ""
        raise UsageError(
            f"nothing to resume: no checkpoint in {self.path / 'checkpoints'}{also}; "
            "without resume and resume_from a new run starts"
        )

    # --- deciding

    def go_on(self, path: Path, spec: str, branch: Path | None) -> RunDirectory:
        """Lock `path` and go on from its checkpoint `spec`; a run that never wrote one starts over."""
        stored = read_json(path / "identity.json")
        if stored and stored.get("entry") != self.entry:
            raise UsageError(f"{path} is a run of {stored.get('entry')}.py, not of {self.entry}.py")
        with _lock(path) as held:
            require_own(path)
            clear_leftovers(path)
            store = CheckpointStore(path, self.entry)
            store.recover()
            if not is_set_aside(path):  # killed on the way to being set aside, and wanted all the same
                (path / SET_ASIDE).unlink(missing_ok=True)
            if store.latest() is None:  # killed before its first checkpoint
                for name in METRIC_FILES:
                    truncate_to(path / name, 0)
                branch = branch or (Path(stored["branch"]) if stored.get("branch") else None)
                text = f"{path}: no checkpoint yet, starting again from " + (str(branch) if branch else "step 0")
                return _opened(held.pop_all(), path, "new", branch, text)
            checkpoint = store.resolve(spec)
            known = stored.get("config") or {}
            changed = "" if self.same(path) else changes(known, self._identity_for(known))
            text = f"{path}: going on from {checkpoint.name}" + (f" with changes: {changed}" if changed else "")
            run = _opened(held.pop_all(), path, "continue", checkpoint, text)
        if not self.same(path):
            run._identity = self._identity_file(None, known)
        return run

    def start(self, branch: Path | None) -> RunDirectory:
        """A new run at the path, after setting aside the one that is there."""
        path, others = self.path, require_room(self.path)
        moved = self._clear_the_way(others)
        path.mkdir(parents=True, exist_ok=True)
        held = _lock(path)
        require_own(path)
        clear_leftovers(path)
        atomic_write_json(path / "identity.json", self._identity_file(branch))
        text = f"{moved}{path}: new run" + (f", branching off from {branch}" if branch else "")
        return _opened(held, path, "new", branch, text)

    def _identity_for(self, known: Mapping[str, Any]) -> Mapping[str, Any]:
        return without_later(self.identity, known, self.later)

    def _identity_file(self, branch: Path | None, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        began_at = {"branch": str(branch)} if branch else {}
        identity = dict(self._identity_for(known or {}))
        key = {"entry": self.entry, "identity": sha256_json(identity)}
        return {**key, **began_at, "time": now(), "config": identity}

    def _clear_the_way(self, others: Mapping[str, Path]) -> str:
        """Set the run at the path aside, if there is one. Returns the clause that says so or nothing."""
        path = self.path
        if moving_to(path) is None and not (path / "identity.json").exists():
            return ""
        with _lock(path):
            require_own(path)
            what = "another run, half moved already" if moving_to(path) else self._what_is_there()
            aside = set_aside(path, others)
        stays = f" ({', '.join(str(path / name) for name in others)} stays)" if others else ""
        return f"{path} was in the way ({what}) and is now {aside.name}{stays}; "

    def _what_is_there(self) -> str:
        if self.same(self.path):
            return "a finished run" if is_finished(self.path) else "an unfinished run of the same config"
        stored = read_json(self.path / "identity.json")
        known = stored.get("config") or {}
        changed = changes(known, self._identity_for(known))
        return f"another run: {changed or 'entry ' + str(stored.get('entry'))}"


def _opened(
    held: contextlib.ExitStack, path: Path, mode: Literal["new", "continue"], checkpoint: Path | None, text: str
) -> RunDirectory:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    before = read_json(path / "status.json")
    run = RunDirectory(path, mode, checkpoint, text, held, _folder=folder, _before=before)
    run.set_status("running", step=_step_of(checkpoint) if mode == "continue" else 0)
    print_rank0(text)
    return run


def _step_of(checkpoint: Path | None) -> int | None:
    number = checkpoint.name.removeprefix("step_") if checkpoint else ""
    return int(number) if number.isdigit() else None


def _lock(path: Path) -> contextlib.ExitStack:
    """Lock `path` until the stack is closed. Raises: UsageError naming the pid of a live holder."""
    stack = contextlib.ExitStack()
    stack.enter_context(file_lock(path / ".lock", wait=False))
    return stack
