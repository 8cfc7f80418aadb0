"""A checkpoint's training state, held against what this run expects before any of it is used.

Checksums say that a file is what was written, not that it was written by us: a state may have the right sums and keys
that are missing, lists for numbers, a step below zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint.store import Checkpoint, WeightsMisfit
from engine.errors import UsageError
from engine.loop.trainer import Trainer
from engine.run.identity import what_changed

BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError)
"""What a state of another form raises where it is used."""

LARGEST = 1 << 53
"""Steps and counts beyond it are no counts."""

LOOSE = ("state.trainer.skipped",)
"""Tensors of which older versions kept more numbers: their owner says which it takes."""


def load_state(trainer: Trainer, checkpoint: Checkpoint, *, rank: int, world_size: int) -> None:
    """Let `trainer` go on from `checkpoint`. A collective.

    Raises: UsageError that names the checkpoint and what does not fit this run: the key that changed, where one has.
    """
    try:
        state = checkpoint.state(rank=rank, world_size=world_size)
        fault = misfit(state, trainer.state_dict(), "state") or _wrong_step(state, checkpoint.step)
        if fault is not None:
            raise ValueError(fault)
        trainer.load(checkpoint, state)
    except torch.OutOfMemoryError:
        raise
    except (WeightsMisfit, *BROKEN) as error:
        if (changed := what_changed(checkpoint.config, trainer.config)) is not None:
            raise UsageError(
                f"checkpoint {checkpoint.path} is of another model or training ({changed}): go back to its value, "
                "or start again with resume=false"
            ) from error
        what = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise UsageError(
            f"checkpoint {checkpoint.path}: its state is not one of this run ({what}): "
            "name another one with resume_from=step_N, or start again with resume=false"
        ) from error


def misfit(stored: Any, own: Any, place: str) -> str | None:
    """What in `stored` is of another kind than in the run's own state, None if nothing is.

    Keys of which the fresh state knows nothing yet (an open window, moments) are for their owners to judge.
    """
    if isinstance(own, Mapping):
        if not isinstance(stored, Mapping):
            return f"{place} is {_kind(stored)}, expected a block"
        below = (misfit(stored[key], own[key], f"{place}.{key}") for key in own if key in stored)
        return next((fault for fault in below if fault), None)
    if isinstance(own, Tensor):
        if not isinstance(stored, Tensor):
            return f"{place} is {_kind(stored)}, expected a tensor"
        same = stored.dim() == 1 and len(stored) >= len(own) if place in LOOSE else stored.shape == own.shape
        if not same or stored.dtype != own.dtype:
            return f"{place} is {_kind(stored)}, expected {_kind(own)}"
        return None
    if isinstance(own, list | tuple):
        return None if isinstance(stored, list | tuple) else f"{place} is {_kind(stored)}, expected a list"
    if isinstance(own, bool | str):
        return None if type(stored) is type(own) else f"{place} is {_kind(stored)}, expected {_kind(own)}"
    if type(own) is int:
        if type(stored) is not int or not min(own, 0) <= stored < LARGEST:
            return f"{place} is {stored!r:.40}, expected a whole number of at least {min(own, 0)}"
        return None
    number = type(stored) in (int, float) and math.isfinite(stored) and abs(stored) < 1e300
    return None if number or (own is None and stored is None) else f"{place} is {stored!r:.40}, expected a number"


def _wrong_step(state: Mapping[str, Any], step: int) -> str | None:
    """The steps that the state names are those of the checkpoint; results are numbers."""
    trainer, task = state.get("trainer"), state.get("task")
    if not isinstance(trainer, Mapping) or not isinstance(task, Mapping):
        return "state has no block trainer or task"
    for place, found in (("trainer", trainer.get("step")), ("task", task.get("step", step))):
        if found != step:
            return f"state.{place}.step is {found!r:.40}, the checkpoint is of step {step}"
    if trainer.get("evaluated_step", -1) > step:
        return f"state.trainer.evaluated_step is {trainer['evaluated_step']}, beyond step {step}"
    results = trainer.get("results")
    if not isinstance(results, Mapping) or not all(
        isinstance(name, str) and (value is None or type(value) in (int, float)) for name, value in results.items()
    ):
        return "state.trainer.results are no numbers by name"
    return None


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return "null" if value is None else f"of type {type(value).__name__}"
