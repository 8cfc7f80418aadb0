"""The run directory: a decision is carried out by opening it; what is written into it; whether it still is there.

Rank 0 alone has one open, locked for the life of the process.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.checkpoint.store import CheckpointStore
from engine.errors import RunFailure, UsageError
from engine.io import atomic_write_json, atomic_write_text, file_lock, make_link, print_rank0, sha256_json
from engine.run.aside import (
    SET_ASIDE,
    clear_leftovers,
    contents,
    is_set_aside,
    require_own,
    require_room,
    set_aside,
)
from engine.run.decision import RunDecision, resolve_run
from engine.run.files import finite, is_finished, now, read_json, truncate_to, write_yaml
from engine.run.request import RunRequest

METRIC_FILES = ("metrics.jsonl", "metrics.csv")
STATES = ("running", "interrupted", "done", "failed", "refused")


@dataclass
class RunDirectory:
    """An open and locked run directory."""

    path: Path
    decision: RunDecision
    """What was carried out."""
    message: str = ""
    """The line that was printed about it."""
    _lock: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)
    _status: dict[str, Any] = field(default_factory=dict, repr=False)
    _identity: dict[str, Any] = field(default_factory=dict, repr=False)  # to be written by write_config
    _folder: int | None = field(default=None, repr=False)  # descriptor: the directory itself, wherever it is moved
    _before: dict[str, Any] = field(default_factory=dict, repr=False)  # status.json as this process found it

    def write_config(self, unresolved: str, resolved: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
        """config.yaml (text with interpolations), config.resolved.yaml (and its link), overrides.txt.

        Call it once the state is loaded: a resume that changed keys has its new identity kept from here on.
        """
        if self._identity:
            atomic_write_json(self.path / "identity.json", self._identity)
        atomic_write_text(self.path / "config.yaml", unresolved)
        write_yaml(self.path / "config.resolved.yaml", resolved)
        link = self.path / "all_config.yaml"
        if link.is_file() and not link.is_symlink():  # a copy of a run, its links followed
            link.unlink()
        make_link(link, "config.resolved.yaml")
        atomic_write_text(self.path / "overrides.txt", "".join(f"{override}\n" for override in overrides))

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """environment.json (`engine.run.environment.describe_environment`)."""
        atomic_write_json(self.path / "environment.json", environment)

    def write_summary(self, primary: Mapping[str, Any] | None, **more: Any) -> None:
        """summary.json: {"name", "value", "goal"} of the primary metric, then `more`. Not finite -> null."""
        head = dict(primary) if primary else {"name": None, "value": None, "goal": None}
        atomic_write_json(self.path / "summary.json", finite({**head, **more}))

    def set_status(self, state: str, **fields: Any) -> None:
        """status.json: state, pid, step, exit_code, message, time, more `fields`; the step is remembered.

        What this process found stays where it is refused on a finished run.
        Raises: ValueError on a state that is none of STATES.
        """
        if state not in STATES:
            raise ValueError(f"status '{state}': choose one of {', '.join(STATES)}")
        if state == "refused" and self._before.get("state") == "done":
            self._status = self._before
        else:
            head = {"state": state, "pid": os.getpid(), "step": self._status.get("step")}
            self._status = {**head, "exit_code": None, "message": None, "time": now(), **fields}
        status = finite(self._status)
        if self._folder is None or self.is_there():
            return atomic_write_json(self.path / "status.json", status)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with contextlib.suppress(FileNotFoundError):  # removed: there is no file to write
            handle = os.open("status.json", flags, 0o644, dir_fd=self._folder)
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(json.dumps(status, indent=2) + "\n")

    def is_there(self) -> bool:
        """Whether `path` still is the directory that was opened, and the run's files are in it."""
        try:
            same = self._folder is None or os.path.samestat(os.stat(self.path), os.fstat(self._folder))
            os.stat(self.path / "identity.json")
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a file server that does not answer is not proof
            return True
        return same

    def require_there(self) -> None:
        """Raises: RunFailure when the directory was removed or renamed: what is written now would be lost."""
        if not self.is_there():
            raise RunFailure(
                f"the run directory {self.path} was removed or renamed during the run: put it back, and the "
                "same command resumes from its last checkpoint"
            )

    def close(self) -> None:
        """Give the lock back (the end of the process does it as well)."""
        self._lock.close()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


# --- opening ----------------------------------------------------------------------------------------------------------


def open_run(request: RunRequest, decision: RunDecision | None = None) -> RunDirectory:
    """Lock the directory of `decision` (None: resolve it now), carry the decision out, and print what was done.

    Another launch may have come between the decision and the lock, so the directory is judged again under the lock,
    and that judgement counts. A run in the way is renamed `<path>.1` (the next free number).

    Raises: UsageError: a live process in the directory (names its pid), or whatever `resolve_run` refuses.
    """
    try:
        decision, moved = decision or resolve_run(request), ""
        while True:
            with _lock(decision.path) as held:
                run, decision, moved = _carry_out(request, decision, moved, held)
            if run is not None:
                return run
    except OSError as error:
        raise request.unusable(error) from None


def _carry_out(
    request: RunRequest, decision: RunDecision, moved: str, held: contextlib.ExitStack
) -> tuple[RunDirectory | None, RunDecision, str]:
    """The open run; or None, and what to do now: a run has been set aside, or the disk has changed.

    `held` is the lock on the directory; `moved` names the run that has been set aside for this one, and its new place.
    """
    path = decision.path
    require_own(path)
    if decision.action in ("resume", "restart"):
        clear_leftovers(path)
        CheckpointStore(path, request.entry).recover()
        if not is_set_aside(path):  # killed on the way to being set aside, and resumed all the same
            (path / SET_ASIDE).unlink(missing_ok=True)
    current = resolve_run(request)
    if (current.action, current.path) != (decision.action, path):
        return None, current, moved
    if current.action == "set_aside":
        others = require_room(path)
        aside = set_aside(path, others)
        stays = f" ({', '.join(str(path / name) for name in others)} stays)" if others else ""
        moved += f"{path} was in the way ({current.displaced}) and is now {aside.name}{stays}; "
        return None, resolve_run(request), moved
    stored, identity = read_json(path / "identity.json"), {}
    if current.action == "new":
        clear_leftovers(path)
        atomic_write_json(path / "identity.json", identity_file(request, branch=current.branch))
    elif current.action == "restart":
        for name in METRIC_FILES:
            truncate_to(path / name, 0)
    elif not request.same(path):
        identity = identity_file(request, known=stored.get("config") or {})
    run = RunDirectory(
        path,
        replace(current, action="set_aside") if moved and current.action == "new" else current,
        f"{moved}{path}: {current.reason}",
        held.pop_all(),
        _identity=identity,
        _folder=os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
        _before=read_json(path / "status.json"),
    )
    run.set_status("running", step=_step_of(current.checkpoint) if current.resumes else 0)
    print_rank0(run.message)
    return run, current, moved


def identity_file(
    request: RunRequest, *, branch: Path | None = None, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    began_at = {"branch": str(branch)} if branch else {}
    identity = dict(request.identity_for(known or {}))
    key = {"entry": request.entry, "identity": sha256_json(identity)}
    return {**key, **began_at, "time": now(), "config": identity}


def _step_of(checkpoint: Path | None) -> int | None:
    number = checkpoint.name.removeprefix("step_") if checkpoint else ""
    return int(number) if number.isdigit() else None


def _lock(path: Path) -> contextlib.ExitStack:
    """Lock `path` until the stack is closed. Raises: UsageError naming the pid of a live holder."""
    stack = contextlib.ExitStack()
    stack.enter_context(file_lock(path / ".lock", wait=False))
    return stack


def record_refusal(request: RunRequest, *, state: str, **fields: Any) -> None:
    """Leave status.json for a launch that ended before it had its directory: a job runner reads it.

    Written only where nothing else lies, or into an unfinished run of the same identity that no process holds.
    """
    path = request.path
    try:
        if contents(path) and (not request.same(path) or is_finished(path)):
            return
        path.mkdir(parents=True, exist_ok=True)
        with _lock(path) as held:
            require_own(path)
            RunDirectory(path, RunDecision("new", path, ""), _lock=held).set_status(state, **fields)
    except (OSError, UsageError):  # what refused the launch is what the user has to read
        return
