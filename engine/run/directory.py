"""The run directory: carrying out a decision by opening it, writing its files, checking that it still exists.

Only rank 0 opens it, and holds its lock for the life of the process.
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
from engine.run.aside import SET_ASIDE, clear_leftovers, contents, is_set_aside, require_own, require_room, set_aside
from engine.run.decision import RunDecision, resolve_run
from engine.run.files import finite, is_finished, now, read_json, truncate_to, write_yaml
from engine.run.request import RunRequest

METRIC_FILES = ("metrics.jsonl", "metrics.csv")


@dataclass
class RunDirectory:
    """An open and locked run directory."""

    path: Path
    decision: RunDecision
    """The decision that was carried out."""
    message: str = ""
    """The line printed about it."""
    _lock: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)
    _status: dict[str, Any] = field(default_factory=dict, repr=False)
    _identity: dict[str, Any] = field(default_factory=dict, repr=False)  # for write_config to write
    _folder: int | None = field(default=None, repr=False)  # file descriptor: follows the directory if it is moved
    _before: dict[str, Any] = field(default_factory=dict, repr=False)  # status.json as this process found it

    def write_config(self, unresolved: str, resolved: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
        """Write config.yaml (text with interpolations), config.resolved.yaml (and its link), overrides.txt.

        Call it once the state is loaded: from here on a resume with changed keys has its new identity.
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
        """Write environment.json (`engine.run.environment.describe_environment`)."""
        atomic_write_json(self.path / "environment.json", environment)

    def write_summary(self, primary: Mapping[str, Any], **more: Any) -> None:
        """Write summary.json: {"name", "value", "goal"} of the primary metric, then `more`. Not finite -> null."""
        atomic_write_json(self.path / "summary.json", finite({**primary, **more}))

    def set_status(self, state: str, **fields: Any) -> None:
        """Write status.json: state (running, interrupted, done, failed, refused), pid, step, exit_code, message, time,
        more `fields`; the last step set is kept.

        A launch refused on a finished run leaves that run's status unchanged.
        """
        if state == "refused" and self._before.get("state") == "done":
            self._status = self._before
        else:
            head = {"state": state, "pid": os.getpid(), "step": self._status.get("step")}
            self._status = {**head, "exit_code": None, "message": None, "time": now(), **fields}
        status = finite(self._status)
        if self._folder is None or self.exists():
            return atomic_write_json(self.path / "status.json", status)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with contextlib.suppress(FileNotFoundError):  # removed: there is no file to write
            handle = os.open("status.json", flags, 0o644, dir_fd=self._folder)
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(json.dumps(status, indent=2) + "\n")

    def exists(self) -> bool:
        """Whether `path` is still the directory that was opened, with the run's files in it."""
        try:
            same = self._folder is None or os.path.samestat(os.stat(self.path), os.fstat(self._folder))
            os.stat(self.path / "identity.json")
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a file server that does not respond proves nothing
            return True
        return same

    def require_exists(self) -> None:
        """Raises: RunFailure if the directory was removed or renamed: further writes would be lost."""
        if not self.exists():
            raise RunFailure(
                f"the run directory {self.path} was removed or renamed during the run: put it back, and the "
                "same command resumes from its last checkpoint"
            )

    def close(self) -> None:
        """Release the lock (the end of the process does so as well)."""
        self._lock.close()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


# --- opening ----------------------------------------------------------------------------------------------------------


def open_run(request: RunRequest, decision: RunDecision | None = None) -> RunDirectory:
    """Lock the directory of `decision` (None: decide now), carry the decision out, and print what was done.

    Another launch may have come between the decision and the lock, so it is decided again under the lock, and that
    decision counts. A run in the way is renamed `<path>.1` (the next free number).

    Raises: UsageError for a directory in use by a live process (names its pid), or whatever `resolve_run` refuses.
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
    """One attempt: the open run; or None and the next decision, if a run was set aside or the disk has changed.

    `held` is the lock on the directory; `moved` is text on the runs set aside so far for this one.
    """
    path = decision.path
    require_own(path)
    if decision.action in ("resume", "restart"):
        clear_leftovers(path)
        CheckpointStore(path, request.entry).recover()
        if not is_set_aside(path):  # a kill interrupted setting it aside, and now it is resumed instead
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
    elif not request.matches(path):
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
    run.set_status("running", step=current.step)
    print_rank0(run.message)
    return run, current, moved


def identity_file(
    request: RunRequest, *, branch: Path | None = None, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    began_at = {"branch": str(branch)} if branch else {}
    identity = dict(request.identity_for(known or {}))
    key = {"entry": request.entry, "identity": sha256_json(identity)}
    return {**key, **began_at, "time": now(), "config": identity}


def _lock(path: Path) -> contextlib.ExitStack:
    """Lock `path` until the stack is closed. Raises: UsageError naming the pid of a live holder."""
    stack = contextlib.ExitStack()
    stack.enter_context(file_lock(path / ".lock", wait=False))
    return stack


def record_refusal(request: RunRequest, *, state: str, **fields: Any) -> None:
    """Write status.json for a launch that ended before it opened its directory: a job runner reads it.

    Written only into an empty directory, or into an unfinished run of the same identity that no process has locked.
    """
    path = request.path
    try:
        if contents(path) and (not request.matches(path) or is_finished(path)):
            return
        path.mkdir(parents=True, exist_ok=True)
        with _lock(path) as held:
            require_own(path)
            RunDirectory(path, RunDecision("new", path, ""), _lock=held).set_status(state, **fields)
    except (OSError, UsageError):  # the user should see the error that refused the launch, not this one
        return
