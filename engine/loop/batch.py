"""The global batch is the run's: another number of processes keeps it, or is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoint.store import CheckpointStore, load_checkpoint
from engine.config import RunConfig
from engine.distributed import world_size
from engine.errors import UsageError
from engine.io import print_rank0
from engine.run import resume, rundir
from engine.run.files import read_json


def accumulation(config: RunConfig, entry: str) -> int:
    """Micro-batches per step of this launch: `config.accumulation`, but for a run that goes on with another number of
    processes, where each of them adds rows to the batch. Only reads.

    Raises: UsageError where so many processes cannot make up the batch, or the checkpoint is damaged.
    """
    keys = config.BATCH_KEYS
    asked = resume.claim(config, entry)
    again = config.resume == "true"
    folder = rundir.find_resumable(resume.run_dir(config), **asked) if again else resume.unfinished(config, entry)
    if folder is None or not keys:
        return config.accumulation
    latest = CheckpointStore(folder, entry).latest()
    manifest = {} if latest is None else load_checkpoint(latest, checksums=False).manifest
    recorded = manifest.get("extra", {}).get("batch_rows")
    rows = _rows_before(folder, manifest, keys) if manifest and recorded is None else recorded
    if type(rows) is not int or any(manifest["config"].get(key) != getattr(config, key) for key in keys):
        return config.accumulation  # of an earlier version, or another batch is asked for
    ranks, each = world_size(), getattr(config, keys[0])
    pieces, left = divmod(rows, each * ranks)
    if left:
        raise UsageError(
            f"this run's batch is {rows} rows, and {ranks} processes of {keys[0]}={each} cannot make it up: choose a "
            f"number of processes that divides {rows // each}, or resume=true and another {keys[0]} (another batch)"
        )
    if pieces != config.accumulation:
        print_rank0(f"note: this run's batch of {rows} rows is kept: accumulation {pieces} with {ranks} process(es)")
    return pieces


def _rows_before(folder: Path, manifest: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    """The batch of a checkpoint from before it was recorded, by its config and the number of processes of then."""
    environment, config = read_json(folder / "environment.json"), manifest.get("config", {})
    if type(rows := environment.get("batch_rows")) is int:  # gone on with since, without a further checkpoint
        return rows
    factors = [environment.get("world_size"), *(config.get(key) for key in keys)]
    if not all(type(factor) is int and factor > 0 for factor in factors):
        print_rank0(f"warning: {folder} does not say how many processes it ran with: its batch may be another one now")
        return None
    return math.prod(factors)
