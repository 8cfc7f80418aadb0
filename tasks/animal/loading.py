"""Load a run of train_animal.py: adapters on their base, with the task's state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.manifest import Checkpoint
from engine.errors import UsageError
from engine.run.load_run import BROKEN, OpenedCheckpoint, find_checkpoint, open_checkpoint


def open_animal_run(path: str | Path, *, overrides: Mapping[str, Any] | None = None, **how: Any) -> OpenedCheckpoint:
    """`open_checkpoint`, plus the task's state: buffer, embedder, and the base's samples that metrics refer to. Raises:
    UsageError, also for a base other than the one that was trained on.
    """
    checkpoint = find_checkpoint(path, checksums=True)
    try:
        state = checkpoint.state()["task"]
        own = {"embedder": state["embedder"]["name"]}  # the one chosen when the run started
    except BROKEN as error:
        raise _damaged(checkpoint, error) from error
    opened = open_checkpoint(path, overrides={**(overrides or {}), **own}, **how)
    try:
        opened.plan.task.load_state_dict(state)
    except BROKEN as error:
        raise _damaged(checkpoint, error) from error
    return opened


def _damaged(checkpoint: Checkpoint, error: BaseException) -> UsageError:
    return UsageError(f"checkpoint {checkpoint.path}: its state is not one of train_animal.py ({error})")
