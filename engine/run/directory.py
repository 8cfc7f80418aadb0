"""An open run directory: what is written into it, how the run stands, and whether it still is where it was.

Rank 0 alone has one; `engine.run.rundir.open_run` opens it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.errors import RunFailure
from engine.io import atomic_write_json, atomic_write_text, make_link
from engine.run.files import finite, now, truncate_to, write_yaml

STATES = ("running", "interrupted", "done", "failed", "refused")


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
        self._write_status(self._status)

    @property
    def was_done(self) -> bool:
        """Whether the run was finished when this process opened it."""
        return self._before.get("state") == "done"

    def put_back_status(self) -> None:
        """status.json as it was before this process: a finished run stays one when a command on it is refused."""
        self._write_status(self._before)

    def _write_status(self, status: Mapping[str, Any]) -> None:
        if self._folder is None or self.is_there():
            return atomic_write_json(self.path / "status.json", finite(status))
        text = json.dumps(finite(status), indent=2) + "\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with contextlib.suppress(FileNotFoundError):  # removed: there is no place to say it
            handle = os.open("status.json", flags, 0o644, dir_fd=self._folder)
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(text)

    def is_there(self) -> bool:
        """Whether `path` still is the directory that was opened, and the run's files are in it."""
        try:
            same = self._folder is None or os.path.samestat(os.stat(self.path), os.fstat(self._folder))
            os.stat(self.path / "identity.json")
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a file server that does not answer is no proof
            return True
        return same

    def require_there(self) -> None:
        """Raises: RunFailure when the directory was removed or renamed: what is written now would be lost."""
        if not self.is_there():
            raise RunFailure(
                f"the run directory {self.path} was removed or renamed while the run went on: put it back, and the "
                "same command goes on from its last checkpoint"
            )

    def cut_back(self, sizes: Mapping[str, int]) -> None:
        """Cut each file of the run (name -> bytes, from the checkpoint's extra) back to what it was then."""
        for name, size in sizes.items():
            truncate_to(self.path / name, size)

    def close(self) -> None:
        """Give the lock back (the end of the process does it as well)."""
        self._lock.close()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None
