"""A run of train_animal.py read back: adapters on their base, and what the run knows beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.run.load_run import BROKEN, OpenedCheckpoint, open_checkpoint


def open_animal_run(path: str | Path, **how: Any) -> OpenedCheckpoint:
    """`open_checkpoint`, and the task's own state: the buffer, the embedder, and the samples of the base that figures
    are measured against. Raises: UsageError: also for another base than the one that was trained on.
    """
    opened = open_checkpoint(path, **how)
    runtime, checkpoint = opened.runtime, opened.checkpoint
    try:
        state = checkpoint.state(rank=runtime.rank, world_size=runtime.world_size)
        opened.plan.task.load_state_dict(state["task"])
    except BROKEN as error:
        raise UsageError(f"checkpoint {checkpoint.path}: its state is not one of train_animal.py ({error})") from error
    return opened
