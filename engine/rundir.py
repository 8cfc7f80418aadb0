"""The life of a run directory: going on, starting, setting a foreign run aside, and what is written into it.

Rank 0 alone calls this. `open_run` decides by the *identity* of the run (the config without device, logging,
budget and launch keys), locks the directory for the life of the process and says what it decided.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.checkpoint import CheckpointStore
from engine.errors import UsageError
from engine.io import (
    atomic_write_json,
    atomic_write_text,
    file_lock,
    fsync_directory,
    remove_leftovers,
    say,
    sha256_json,
)
from engine.runfiles import changes, finite, now, read_json, to_glob, truncate_to, write_yaml

STATES = ("running", "interrupted", "done", "failed", "refused")
# What a launcher, Hydra or the preflight may leave in a directory before the run itself owns it.
NOT_A_RUN_YET = {".lock", ".hydra", "status.json", "path_signature.json"}
SET_ASIDE = ".set_aside"  # marks a renamed run, so that a time-stamped name does not find it again
METRIC_FILES = ("metrics.jsonl", "metrics.csv")

Resume = bool | Literal["auto", "true", "false"]


def identity_of(config: Mapping[str, Any], *, without: Iterable[str]) -> dict[str, Any]:
    """The resolved `config` less the dotted keys `without`: what makes two runs the same experiment.

    1.0 becomes 1, so that `lr=1` and `lr=1.0` are the same run.
    """
    gone = set(without)

    def kept(node: Any, place: str) -> Any:
        if isinstance(node, Mapping):
            inner = {str(key): (value, f"{place}.{key}" if place else str(key)) for key, value in node.items()}
            return {key: kept(value, below) for key, (value, below) in inner.items() if below not in gone}
        if isinstance(node, list | tuple):
            return [kept(item, f"{place}[]") for item in node]
        return int(node) if isinstance(node, float) and node.is_integer() else node

    return kept(config, "")


@dataclass
class RunDirectory:
    """An open and locked run directory."""

    path: Path
    mode: Literal["new", "continue"]
    """"new" starts at step 0 (or as a branch of `checkpoint`), "continue" goes on from `checkpoint`."""
    checkpoint: Path | None
    """Where the state comes from; not yet verified (`load_checkpoint` does that)."""
    message: str
    """What was decided, as it was said."""
    _lock: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)
    _status: dict[str, Any] = field(default_factory=dict, repr=False)
    _identity: dict[str, Any] = field(default_factory=dict, repr=False)  # to be written by write_config

    def write_config(self, unresolved: str, resolved: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
        """config.yaml (text with interpolations), config.resolved.yaml (and its link), overrides.txt.

        Call it once the state is loaded: a resume that changed keys has its new identity kept from here on.
        """
        if self._identity:
            atomic_write_json(self.path / "identity.json", self._identity)
        atomic_write_text(self.path / "config.yaml", unresolved)
        write_yaml(self.path / "config.resolved.yaml", resolved)
        link = self.path / "all_config.yaml"
        if not link.is_symlink():
            link.unlink(missing_ok=True)
            link.symlink_to("config.resolved.yaml")
        atomic_write_text(self.path / "overrides.txt", "".join(f"{override}\n" for override in overrides))

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """environment.json (`engine.environment.describe_environment`)."""
        atomic_write_json(self.path / "environment.json", environment)

    def write_summary(self, primary: Mapping[str, Any] | None, **more: Any) -> None:
        """summary.json: {"name", "value", "goal"} of the primary metric, then `more`. Not finite -> null."""
        head = dict(primary) if primary else {"name": None, "value": None, "goal": None}
        atomic_write_json(self.path / "summary.json", finite({**head, **more}))

    def set_status(self, state: str, **fields: Any) -> None:
        """status.json: state, pid, step, exit_code, message, time, more `fields`; the step is remembered.

        Raises: ValueError on a state that is none of STATES.
        """
        if state not in STATES:
            raise ValueError(f"status '{state}': choose one of {', '.join(STATES)}")
        self._status = {
            "state": state,
            "pid": os.getpid(),
            "step": self._status.get("step"),
            "exit_code": None,
            "message": None,
            "time": now(),
            **fields,
        }
        atomic_write_json(self.path / "status.json", finite(self._status))

    def cut_back(self, sizes: Mapping[str, int]) -> None:
        """Cut each file of the run (name -> bytes, from the checkpoint's extra) back to what it was then."""
        for name, size in sizes.items():
            truncate_to(self.path / name, size)

    def close(self) -> None:
        """Give the lock back (the end of the process does it as well)."""
        self._lock.close()


def open_run(
    path: str | os.PathLike[str],
    *,
    identity: Mapping[str, Any],
    entry: str,
    pattern: str | None = None,
    resume: Resume = "auto",
    resume_from: str | None = None,
) -> RunDirectory:
    """Decide which directory this run uses and whether it goes on there, lock it, and say so.

    `path` is the resolved run_dir, `pattern` the unresolved one: when it holds `${now:...}`, earlier runs of
    the same `identity` (`identity_of`) are found under other times. `resume`:

    - auto: an unfinished run of this identity goes on from its latest checkpoint (without one: starts over).
    - true: the latest checkpoint must exist, the run finished or not; changed keys are said.
    - false: always a new run.

    Whatever else is in the way is renamed `<path>.1` (the next free number). `resume_from` names a
    checkpoint: latest, best or step_N of this run (finished or not), or the path of any other, from which a
    new run branches off.

    Raises: UsageError: nothing to resume (names the folder searched), a live process in the directory (names
    its pid), a contradiction, a path that cannot be used.
    """
    choice = _resume_choice(resume, resume_from)
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"run_dir={path} is a file: choose another run_dir")
    claim = _claim(path, identity, entry, pattern)
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


def note_refusal(
    path: str | os.PathLike[str], *, identity: Mapping[str, Any], entry: str, state: str, **fields: Any
) -> None:
    """Leave status.json for a launch that ended before it had its directory: a job runner reads it.

    Written only where nothing else lies, or into an unfinished run of the same identity that no process holds.
    """
    path = Path(path)
    claim = _claim(path, identity=identity, entry=entry, pattern=None)
    try:
        present = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        if present - NOT_A_RUN_YET and (not claim.same(path) or is_finished(path)):
            return
        path.mkdir(parents=True, exist_ok=True)
        with _lock(path) as held:
            RunDirectory(path, "new", None, "", held).set_status(state, **fields)
    except (OSError, UsageError):  # what refused the launch is what the user has to read
        return


def find_resumable(
    path: str | os.PathLike[str], *, identity: Mapping[str, Any], entry: str, pattern: str | None = None
) -> Path:
    """The run directory that `open_run(..., resume=True)` would go on in; nothing is locked or changed.

    Raises: UsageError that names the folder searched when there is no checkpoint to go on from.
    """
    return _claim(path, identity, entry, pattern).resumable()


def find_unfinished(
    path: str | os.PathLike[str], *, identity: Mapping[str, Any], entry: str, pattern: str | None = None
) -> Path | None:
    """The unfinished run of this identity that `open_run` would go on with, where it has a checkpoint."""
    found = _claim(path, identity, entry, pattern).unfinished(None)
    return found if found is not None and CheckpointStore(found, entry).latest() is not None else None


def find_finished(
    path: str | os.PathLike[str], *, identity: Mapping[str, Any], entry: str, pattern: str | None = None
) -> Path | None:
    """The newest finished run of this identity at `path` or at other times of `pattern`."""
    claim = _claim(path, identity, entry, pattern)
    return next((place for place in claim.siblings() if claim.same(place) and is_finished(place)), None)


def _claim(path: str | os.PathLike[str], identity: Mapping[str, Any], entry: str, pattern: str | None) -> _Claim:
    timed = pattern if pattern and "${now" in pattern else None
    return _Claim(Path(path), timed, identity, {"entry": entry, "identity": sha256_json(identity)})


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
    key: Mapping[str, str]  # {"entry", "identity"}: equal in two runs of the same experiment

    # --- looking

    def same(self, path: Path, branch: Path | None = None) -> bool:
        """Whether `path` is a run of this identity (that began at `branch`, if one is given)."""
        stored = read_json(path / "identity.json")
        if branch and stored.get("branch") != str(branch):
            return False
        return all(stored.get(name) == value for name, value in self.key.items())

    def siblings(self) -> list[Path]:
        """The run directory and those of other times, newest first; runs that were set aside stay out."""
        found = {self.path} if self.path.is_dir() else set()
        if self.pattern:
            times = [Path(name) for name in glob.glob(to_glob(self.pattern)) if os.path.isdir(name)]
            found |= {place for place in times if not (place / SET_ASIDE).exists()}
        return sorted(found, key=lambda p: (read_json(p / "status.json").get("time") or "", p.name))[::-1]

    def locate(self, resume_from: str | None) -> tuple[Path | None, Path | None]:
        """What a `resume_from` path means: (run to go on in, None) or (None, checkpoint of another run)."""
        if resume_from is None or _is_pointer(resume_from):
            return None, None
        target = CheckpointStore(self.path, self.key["entry"]).resolve(resume_from)
        homes = [self.path, *(p for p in self.siblings() if self.same(p))]
        home = next((p for p in homes if target.is_relative_to(p.resolve())), None)
        return (home, None) if home else (None, target)

    def unfinished(self, branch: Path | None) -> Path | None:
        """The newest unfinished run of this identity."""
        return next((p for p in self.siblings() if self.same(p, branch) and not is_finished(p)), None)

    def resumable(self) -> Path:
        """The path itself when it has a checkpoint, else the newest run of this identity that has one."""
        for candidate in [self.path, *(p for p in self.siblings() if self.same(p))]:
            if CheckpointStore(candidate, self.key["entry"]).latest():
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
        if stored and stored.get("entry") != self.key["entry"]:
            raise UsageError(f"{path} is a run of {stored.get('entry')}.py, not of {self.key['entry']}.py")
        with _lock(path) as held:
            store = CheckpointStore(path, self.key["entry"])
            remove_leftovers(path)
            store.clean()
            if store.latest() is None:  # killed before its first checkpoint
                for name in METRIC_FILES:
                    truncate_to(path / name, 0)
                branch = branch or (Path(stored["branch"]) if stored.get("branch") else None)
                text = f"{path}: no checkpoint yet, starting again from " + (str(branch) if branch else "step 0")
                return _opened(held.pop_all(), path, "new", branch, text)
            checkpoint = store.resolve(spec)
            changed = "" if self.same(path) else changes(stored.get("config") or {}, self.identity)
            text = f"{path}: going on from {checkpoint.name}" + (f" with changes: {changed}" if changed else "")
            run = _opened(held.pop_all(), path, "continue", checkpoint, text)
        if not self.same(path):
            run._identity = self._identity_file(None)
        return run

    def start(self, branch: Path | None) -> RunDirectory:
        """A new run at the path, after setting aside what is there."""
        path, moved = self.path, self._clear_the_way()
        try:
            path.mkdir(parents=True, exist_ok=True)
            held = _lock(path)
            atomic_write_json(path / "identity.json", self._identity_file(branch))
        except OSError as error:
            raise UsageError(f"run_dir={path} cannot be used ({error.strerror}): choose another run_dir") from None
        text = f"{moved}{path}: new run" + (f", branching off from {branch}" if branch else "")
        return _opened(held, path, "new", branch, text)

    def _identity_file(self, branch: Path | None) -> dict[str, Any]:
        began_at = {"branch": str(branch)} if branch else {}
        return {**self.key, **began_at, "time": now(), "config": dict(self.identity)}

    def _clear_the_way(self) -> str:
        """Rename the run at the path, unless it is empty. Returns the clause that says so or nothing.

        Only runs are renamed: whatever else lies there (a home, a folder of runs) is somebody's and is refused.
        """
        path = self.path
        try:
            present = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        except OSError as error:
            raise UsageError(f"run_dir={path} cannot be read ({error.strerror}): choose another run_dir") from None
        if not present - NOT_A_RUN_YET:
            return ""
        if "identity.json" not in present:
            raise UsageError(f"run_dir={path} is not empty and is no run: choose another run_dir, or empty it")
        with _lock(path):
            what = self._what_is_there()
            taken = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
            aside = next(place for place in taken if not os.path.lexists(place))
            try:
                os.rename(path, aside)
            except OSError as error:
                raise UsageError(f"{path} is in the way and cannot be renamed ({error.strerror})") from None
            (aside / SET_ASIDE).touch()
        fsync_directory(path.parent)
        return f"{path} was in the way ({what}) and is now {aside.name}; "

    def _what_is_there(self) -> str:
        if self.same(self.path):
            return "a finished run" if is_finished(self.path) else "an unfinished run of the same config"
        stored = read_json(self.path / "identity.json")
        changed = changes(stored.get("config") or {}, self.identity)
        return f"another run: {changed or 'entry ' + str(stored.get('entry'))}"


def _opened(
    held: contextlib.ExitStack,
    path: Path,
    mode: Literal["new", "continue"],
    checkpoint: Path | None,
    text: str,
) -> RunDirectory:
    run = RunDirectory(path, mode, checkpoint, text, held)
    run.set_status("running", step=_step_of(checkpoint) if mode == "continue" else 0)
    say(text)
    return run


def _step_of(checkpoint: Path | None) -> int | None:
    number = checkpoint.name.removeprefix("step_") if checkpoint else ""
    return int(number) if number.isdigit() else None


def _lock(path: Path) -> contextlib.ExitStack:
    """Lock `path` until the stack is closed. Raises: UsageError naming the pid of a live holder."""
    stack = contextlib.ExitStack()
    stack.enter_context(file_lock(path / ".lock", wait=False))
    return stack
