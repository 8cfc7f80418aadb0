"""The global batch is the run's: another number of processes keeps it, or is refused."""

from __future__ import annotations

from engine import resume, rundir
from engine.checkpoint import CheckpointStore, read_manifest
from engine.config import RunConfig
from engine.distributed import world_size
from engine.errors import UsageError
from engine.io import say


def accumulation(config: RunConfig, entry: str) -> int:
    """Micro-batches per step of this launch: `config.accumulation`, but for a run that goes on with another number of
    processes, where each of them adds rows to the batch. Only reads.

    Raises: UsageError where so many processes cannot make up the batch.
    """
    keys = config.BATCH_KEYS
    if not keys:
        return config.accumulation
    if config.resume == "true":
        folder = rundir.find_resumable(resume.run_dir(config), **resume.claim(config, entry))
    else:
        found = resume.unfinished(config, entry)
        if found is None:
            return config.accumulation
        folder = found
    latest = CheckpointStore(folder, entry).latest()
    try:
        manifest = read_manifest(latest) if latest is not None else {}
    except ValueError:  # said where the checkpoint is opened
        manifest = {}
    rows = manifest.get("extra", {}).get("batch_rows")
    if type(rows) is not int or any(manifest["config"].get(key) != getattr(config, key) for key in keys):
        return config.accumulation  # of an earlier version, or another batch is asked for
    at_once = getattr(config, keys[0]) * world_size()
    if rows % at_once:
        raise UsageError(
            f"this run's batch is {rows} rows, and {world_size()} processes of {keys[0]}={at_once // world_size()} "
            f"cannot make it up: choose a number of processes that divides {rows * world_size() // at_once}, or say "
            f"resume=true and another {keys[0]}, which changes the batch"
        )
    if rows // at_once != config.accumulation:
        say(
            f"note: this run's batch of {rows} rows is kept: accumulation {rows // at_once} with {world_size()} "
            "process(es)"
        )
    return rows // at_once
