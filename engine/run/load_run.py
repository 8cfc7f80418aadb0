"""Loads a run from a checkpoint: its model, for evaluation, sampling and plots, or its whole state, for a resume.

A model is rebuilt by its family's own `build`. A training state is compared with what this run expects before any of it
is used: checksums prove that a file is unchanged since it was written, not that this program wrote it. A state with
valid checksums may still lack keys, or have lists instead of numbers or a negative step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from engine.checkpoint.manifest import REQUIRED, Checkpoint, load_checkpoint
from engine.checkpoint.state_tree import RowSharded, WeightsMisfit, load_weights
from engine.checkpoint.store import CheckpointStore, followed
from engine.config import RETIRED
from engine.device import make_runtime
from engine.errors import UsageError
from engine.loop.trainer import Trainer
from engine.registry import families, family_of
from engine.run.files import runs_below
from engine.run.identity import value_before, what_changed
from engine.schema import structure
from engine.task import Runtime, TrainingPlan


@dataclass
class OpenedCheckpoint:
    """A run rebuilt from one of its checkpoints, its model in evaluation mode with the chosen weights."""

    plan: TrainingPlan
    config: Any
    runtime: Runtime
    checkpoint: Checkpoint
    run_dir: Path
    weights: str
    """ema or raw: which weights were loaded (raw if the run keeps no average)."""


def find_checkpoint(path: str | Path, *, checksums: bool = False) -> Checkpoint:
    """The checkpoint that `path` names: the latest one of a run directory, a checkpoint itself, a link to one, or
    the file `latest` or `best` of a run.

    Raises: UsageError if there is none or it is damaged (`checksums`: every byte is checked).
    """
    folder = followed(Path(path))
    if folder.name == "checkpoints" and not (folder / "manifest.json").exists() and not runs_below(folder):
        folder = folder.parent
    if (folder / "checkpoints").is_dir() and not runs_below(folder / "checkpoints"):
        folder = CheckpointStore(folder, "").latest() or folder
    if not (folder / "manifest.json").exists() and (runs := runs_below(folder) or runs_below(folder / "checkpoints")):
        raise UsageError(f"{path} is a folder of runs: name one of them, {', '.join(runs)}")
    if (folder / "identity.json").exists() or (folder / "checkpoints").is_dir():
        raise UsageError(f"{folder} holds no checkpoint yet: train it longer, or name another run")
    parts = any((folder / name).exists() for name in ("manifest.json", *REQUIRED))
    if not folder.is_dir() or not (parts or re.fullmatch(r"step_\d+", folder.resolve().name)):
        raise UsageError(f"{path} is neither a run directory nor a checkpoint: expected e.g. checkpoints/PROJECT/RUN")
    return load_checkpoint(folder, checksums=checksums, resuming=False)


def read_config(
    checkpoint: Checkpoint, schema: Any, *, device: str = "auto", overrides: Mapping[str, Any] | None = None
) -> Any:
    """The config of the run that wrote a checkpoint, for one process on `device`. Raises: UsageError."""
    own = {key: value for key, value in checkpoint.config.items() if key not in RETIRED}
    stored = {**{key: value_before(value, own) for key, value in schema.BEFORE.items()}, **own}
    return structure(schema, {**stored, "device": device, "accumulation": 1, "resume": "true", **(overrides or {})})


def family_function(path: str | Path, part: str, name: str) -> Callable[..., Any]:
    """The function `name` of the module `part` in the folder of the family that wrote the checkpoint `path`.

    Raises: UsageError if there is no checkpoint, or its family has no such function.
    """
    checkpoint = find_checkpoint(path)
    family = family_of(checkpoint.entry, f"checkpoint {checkpoint.path}: entry")
    if (function := family.function(part, name)) is None:
        fitting = [f"{other.entry}.py" for other in families() if other.function(part, name) is not None]
        raise UsageError(f"{path} was written by {family.entry}.py: expected a run of {' or '.join(fitting)}")
    return function


def open_checkpoint(
    path: str | Path,
    *,
    device: str = "auto",
    weights: Literal["ema", "raw"] = "ema",
    overrides: Mapping[str, Any] | None = None,
) -> OpenedCheckpoint:
    """Rebuild the run that wrote `path`: a run directory (its latest checkpoint), a checkpoint, or a `step_N` link.

    `overrides` replaces top-level config keys (the data to evaluate on, e.g.); the architecture is the checkpoint's.

    Raises:
        UsageError: no checkpoint there, a damaged one, or a config that this version does not read.
    """
    checkpoint = find_checkpoint(path, checksums=True)
    family = family_of(checkpoint.entry, f"checkpoint {checkpoint.path}: entry")
    config = read_config(checkpoint, family.schema, device=device, overrides=overrides)
    runtime = make_runtime(config)
    plan = family.build(config, runtime)
    averaged = checkpoint.ema if weights == "ema" else None
    try:
        load_weights(plan.task.module, {**checkpoint.model, **(averaged or {})})
    except WeightsMisfit as error:
        changed = what_changed(checkpoint.config, config)
        raise UsageError(f"checkpoint {checkpoint.path}: {changed or error}") from error
    plan.task.module.eval()
    chosen = "ema" if averaged is not None else "raw"
    return OpenedCheckpoint(plan, config, runtime, checkpoint, checkpoint.path.parent.parent, chosen)


# --- the state of a resumed run ---------------------------------------------------------------------------------------


BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError)
"""What loading a malformed state may raise."""

LARGEST = 1 << 53
"""Larger steps and counts are not plausible."""

LOOSE = ("state.trainer.skipped",)
"""Tensors that were longer in older versions: their owner decides which values to use."""


def load_state(trainer: Trainer, checkpoint: Checkpoint, *, rank: int, world_size: int) -> None:
    """Restore the state of `trainer` from `checkpoint`. A collective.

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
        afresh = "resume=false" + (" and no resume_from" if trainer.config.resume_from != "latest" else "")
        if (changed := what_changed(checkpoint.config, trainer.config)) is not None:
            raise UsageError(
                f"checkpoint {checkpoint.path} belongs to another model or training setup ({changed}): go back to its "
                f"value, or start again with {afresh}"
            ) from error
        what = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise UsageError(
            f"checkpoint {checkpoint.path}: its state does not belong to this run ({what}): "
            f"name another one with resume_from=step_N, or start again with {afresh}"
        ) from error


def misfit(stored: Any, own: Any, place: str) -> str | None:
    """The first place where `stored` has another type or shape than the run's own state, as text, or None.

    Keys that the fresh state does not have yet (an open window, moments) are left to their owners.
    """
    own = own.tensor if isinstance(own, RowSharded) else own
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
    """A fault if the steps in the state are not the checkpoint's, or results are not numbers; else None."""
    trainer, task = state.get("trainer"), state.get("task")
    if not isinstance(trainer, Mapping) or not isinstance(task, Mapping):
        return "state has no block trainer or task"
    for place, own_step in (("trainer", trainer.get("step")), ("task", task.get("step", step))):
        if own_step != step:
            return f"state.{place}.step is {own_step!r:.40}, the checkpoint is of step {step}"
    if trainer.get("evaluated_step", -1) > step:
        return f"state.trainer.evaluated_step is {trainer['evaluated_step']}, beyond step {step}"
    results = trainer.get("results")
    if not isinstance(results, Mapping) or not all(
        isinstance(name, str) and (value is None or type(value) in (int, float)) for name, value in results.items()
    ):
        return "state.trainer.results is not a block of numbers"
    return None


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return "null" if value is None else f"of type {type(value).__name__}"
