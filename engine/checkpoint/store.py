"""The checkpoints of one run: saving (large ones in a thread), `latest` and `best` pointers, finding, pruning.

<run>/checkpoints/step_<N>/   complete or absent (engine/checkpoint/manifest.py has the files)
<run>/checkpoints/latest      one line: the name of the newest directory
<run>/checkpoints/best        one line: the directory with the best primary metric
<run>/step_<N>                relative link to checkpoints/step_<N>
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from engine.checkpoint.manifest import STEP_NAME, Contents, read_manifest, step_folders, write_checkpoint
from engine.errors import UsageError
from engine.io import (
    atomic_directory,
    atomic_write_text,
    did_you_mean,
    make_link,
    print_rank0,
    remove_directory,
    remove_leftovers,
    user_path,
)
from engine.reading import Unreadable, read_text


class CheckpointWriteError(OSError):
    """A checkpoint could not be written. No partial one is left, and earlier ones are unchanged."""

    def __str__(self) -> str:
        return str(self.strerror)


def _written(path: Path) -> tuple[str, int]:
    """(time of writing, "" for a damaged checkpoint; step) of the checkpoint `path`."""
    step = int(path.name.removeprefix("step_"))
    try:
        return read_manifest(path)["time"], step
    except ValueError:
        return "", step


class CheckpointStore:
    """Reads and writes `<run_dir>/checkpoints`. Only rank 0, which holds the run's lock, may write."""

    def __init__(self, run_dir: str | os.PathLike[str], entry: str) -> None:
        self.run_dir = Path(run_dir)
        self.folder = self.run_dir / "checkpoints"
        self.entry = entry

    # --- writing

    def recover(self) -> None:
        """Complete a save that was killed after its rename: best, latest, links. Only for the holder of the lock.

        Damaged checkpoints are left alone; if the latest is one, so is `latest`, so that a resume reports it. Pruning
        follows the next save.
        """
        remove_leftovers(self.folder)
        known = self._pointed("latest")
        since = _written(known) if known is not None else ("", -1)
        if known is not None and not since[0]:
            return
        for path in sorted(step_folders(self.folder).values(), key=_written):
            written = _written(path)
            if written[0] and written > since:
                self._point_to(path)
            self.link(path.name, path)

    def save(self, step: int, **parts: Any) -> Path:
        """Write step_<step> (replacing one of that step), `latest`, and `best` if its metric is better. `parts` are the
        other fields of `Contents`.

        Raises: CheckpointWriteError if writing fails; TypeError for state that a checkpoint cannot hold.
        """
        final = self.folder / f"step_{step}"
        try:
            with atomic_directory(final, replace=True) as folder:
                write_checkpoint(folder, self.entry, Contents(step=step, **parts))
            self._point_to(final)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            text = f"checkpoint {final} could not be written ({reason}); the earlier ones are untouched"
            raise CheckpointWriteError(error.errno, text) from error
        self.link(final.name, final)
        return final

    def _point_to(self, path: Path) -> None:
        """Write `best` if it is that, then `latest`, which marks the save as complete (see `recover`)."""
        if self._is_best(read_manifest(path)["metric"], path):
            atomic_write_text(self.folder / "best", f"{path.name}\n")
        atomic_write_text(self.folder / "latest", f"{path.name}\n")

    def _is_best(self, metric: Mapping[str, Any] | None, new: Path) -> bool:
        """Whether it is strictly better than the best so far, or that cannot be compared (missing, another metric)."""
        if metric is None:
            return False
        old = self.best()
        if old is None or old == new:
            return True
        try:
            past = read_manifest(old)["metric"] or {}
        except ValueError:
            return True
        if past.get("name") != metric["name"] or not isinstance(past.get("value"), int | float):
            return True
        if {"covers"} <= past.keys() & metric.keys() and past["covers"] != metric["covers"]:  # changed by a resume
            return True
        if past.get("final", False) != metric.get("final", False):  # a final evaluation over other data
            return bool(past.get("final", False))
        return bool(metric["value"] < past["value"] if metric.get("goal") == "min" else metric["value"] > past["value"])

    def link(self, name: str, target: Path) -> None:
        """Make `<run_dir>/<name>` a relative link to checkpoint `target`. A failure is a warning."""
        make_link(self.run_dir / name, os.path.relpath(target, self.run_dir))

    def prune(self, keep_last: int, keep_every: int | None = None) -> None:
        """Remove all but the `keep_last` newest, the multiples of `keep_every`, latest and best.

        Newest by time of writing: after a resume from an earlier step, the abandoned later steps are the oldest. A
        failed removal is a warning.
        """
        by_age = sorted(step_folders(self.folder).items(), key=lambda item: _written(item[1]))
        kept = {self.latest(), self.best(), *(path for _, path in by_age[max(0, len(by_age) - keep_last) :])}
        for step, path in by_age:
            if path in kept or (keep_every and step % keep_every == 0):
                continue
            try:
                for link in self.run_dir.iterdir():
                    if link.is_symlink() and link.resolve() == path.resolve():
                        link.unlink()
                remove_directory(path)
            except OSError as error:
                print_rank0(f"warning: the old checkpoint {path} could not be removed ({error}); the run continues")

    # --- finding

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return list(step_folders(self.folder))

    def latest(self) -> Path | None:
        """The checkpoint that `latest` names, else (pointer lost) the highest step, else None. Not verified."""
        return self._pointed("latest") or next(reversed(step_folders(self.folder).values()), None)

    def best(self) -> Path | None:
        """The checkpoint that `best` names, None before the first evaluated one. Not verified."""
        return self._pointed("best")

    def _pointed(self, pointer: str) -> Path | None:
        try:
            name = read_text(self.folder / pointer).strip()
        except (OSError, Unreadable):
            return None
        path = self.folder / name
        return path if STEP_NAME.fullmatch(name) and path.is_dir() and not path.is_symlink() else None

    def resolve(self, spec: str | os.PathLike[str], key: str = "resume_from") -> Path:
        """The checkpoint named by `spec`: `latest`, `best`, `step_N`, a checkpoint's path or a run's path (its latest).

        Raises: UsageError that names the config key `key` of `spec`, and lists the checkpoints.
        """
        spec = os.fspath(spec)
        if spec in ("latest", "best"):
            path = self.latest() if spec == "latest" else self.best()
        elif STEP_NAME.fullmatch(spec):
            path = self.folder / spec if (self.folder / spec).is_dir() else None
        else:
            path = self._resolve_path(user_path(spec))
        if path is None:
            names = [f"step_{step}" for step in self.steps()]
            choices = ["latest", *(["best"] if self.best() else []), *names]
            hint = did_you_mean(spec, choices) if names else "it is empty"
            raise UsageError(f"{key}={spec}: no such checkpoint in {self.folder}: {hint}")
        return path

    def _resolve_path(self, path: Path) -> Path | None:
        for base in map(followed, (path, self.run_dir / path, self.folder / path)):
            if (base / "manifest.json").is_file() or (base.is_dir() and STEP_NAME.fullmatch(base.name)):
                return base.resolve()
            if (base / "checkpoints").is_dir() and base != self.run_dir:
                return CheckpointStore(base, self.entry).latest()
        return None


def followed(path: Path) -> Path:
    """`path`, or the checkpoint that it points to, if it is the file `latest` or `best` of a run."""
    if path.name not in ("latest", "best") or path.parent.name != "checkpoints" or not path.is_file():
        return path
    return CheckpointStore(path.parent.parent, "")._pointed(path.name) or path


# --- work in the background -------------------------------------------------------------------------------------------


class Background:
    """A daemon thread for one piece of work. If the process ends first, what is half-written has a temporary name."""

    def __init__(self) -> None:
        self._outcome: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start `work` after waiting for the previous piece. Raises: the previous piece's error."""
        self.wait()
        outcome = self._outcome = Future[None]()

        def run() -> None:
            try:
                work()
                outcome.set_result(None)
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=run, name="checkpoint", daemon=True).start()

    def wait(self) -> None:
        """Wait for the current piece. Raises: its error, once."""
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome.result()
