"""A run rebuilt from one of its checkpoints by its family's own `build`: for evaluation, sampling, drawing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.checkpoint.manifest import REQUIRED
from engine.checkpoint.store import Checkpoint, CheckpointStore, WeightsMisfit, load_checkpoint, load_weights
from engine.errors import UsageError
from engine.registry import families, family_of
from engine.run.before import values_before
from engine.run.files import runs_below
from engine.run.identity import what_changed
from engine.run.launch import make_runtime
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
    """ema or raw: what was loaded (raw where the run keeps no average)."""


def find_checkpoint(path: str | Path, *, checksums: bool = False) -> Checkpoint:
    """What `path` names: a run directory's latest checkpoint, a checkpoint, or a link to one.

    Raises: UsageError where there is none, or a damaged one (`checksums`: every byte is looked at).
    """
    folder = Path(path)
    if folder.name == "checkpoints" and not (folder / "manifest.json").exists() and not runs_below(folder):
        folder = folder.parent
    if (folder / "checkpoints").is_dir() and not runs_below(folder / "checkpoints"):
        found = CheckpointStore(folder, "").latest()
        if found is None:
            raise UsageError(f"{folder} holds no checkpoint yet: train it further, or name another run")
        folder = found
    if not (folder / "manifest.json").exists() and (runs := runs_below(folder) or runs_below(folder / "checkpoints")):
        raise UsageError(f"{path} is a folder of runs: name one of them, {', '.join(runs)}")
    if (folder / "identity.json").exists():
        raise UsageError(f"{folder} holds no checkpoint yet: train it further, or name another run")
    parts = any((folder / name).exists() for name in ("manifest.json", *REQUIRED))
    if not folder.is_dir() or not (parts or re.fullmatch(r"step_\d+", folder.resolve().name)):
        raise UsageError(f"{path} is neither a run directory nor a checkpoint: expected e.g. checkpoints/PROJECT/RUN")
    return load_checkpoint(folder, checksums=checksums)


def read_config(
    checkpoint: Checkpoint, schema: Any, *, device: str = "auto", overrides: Mapping[str, Any] | None = None
) -> Any:
    """The config of the run that wrote a checkpoint, for one process on `device`. Raises: UsageError."""
    stored = {**values_before(schema.BEFORE, checkpoint.config), **checkpoint.config}
    return structure(schema, {**stored, "device": device, "accumulation": 1, "resume": "true", **(overrides or {})})


def family_function(path: str | Path, part: str, name: str) -> Callable[..., Any]:
    """The function `name` of the module `part` in the folder of the family that wrote the checkpoint `path`.

    Raises: UsageError: no checkpoint there, or one of a family without such a function.
    """
    checkpoint = find_checkpoint(path)
    family = family_of(checkpoint.entry, f"checkpoint {checkpoint.path}: entry")
    if (function := family.function(part, name)) is None:
        fitting = [f"{other.entry}.py" for other in families() if other.function(part, name) is not None]
        raise UsageError(f"{path} was written by {family.entry}.py: expected a run of {' or '.join(fitting)}")
    return function


def open_checkpoint(
    path: str | Path, *, device: str = "auto", weights: Literal["ema", "raw"] = "ema",
    overrides: Mapping[str, Any] | None = None,
) -> OpenedCheckpoint:  # fmt: skip
    """Rebuild the run that wrote `path`: a run directory (its latest checkpoint), a checkpoint, or a `step_N` link.

    `overrides` replaces top-level config keys (the data to evaluate on, say); the architecture is the checkpoint's.

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
        load_weights(plan.task.module, {**checkpoint.model, **(averaged or {})}, strict=True)
    except WeightsMisfit as error:
        changed = what_changed(checkpoint.config, config)
        raise UsageError(f"checkpoint {checkpoint.path}: {changed or error}") from error
    plan.task.module.eval()
    chosen = "ema" if averaged is not None else "raw"
    return OpenedCheckpoint(plan, config, runtime, checkpoint, checkpoint.path.parent.parent, chosen)
