"""A run of train_animal.py read back: adapters on their base, and what the run knows beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.manifest import Checkpoint
from engine.errors import UsageError
from engine.run.load_run import BROKEN, OpenedCheckpoint, find_checkpoint, open_checkpoint


def open_animal_run(path: str | Path, *, overrides: Mapping[str, Any] | None = None, **how: Any) -> OpenedCheckpoint:
    """`open_checkpoint`, and the task's own state: the buffer, the embedder, and the samples of the base that figures
    are measured against. Raises: UsageError: also for another base than the one that was trained on.
    """
    checkpoint = find_checkpoint(path, checksums=True)
    try:
        state = checkpoint.state()["task"]
        own = {"embedder": state["embedder"]["name"]}  # as it was chosen when the run began
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
