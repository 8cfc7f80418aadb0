"""The global batch is the run's: another number of processes keeps it, or is refused."""

from __future__ import annotations

from engine import resume, rundir
from engine.checkpoint import CheckpointStore, load_checkpoint
from engine.config import RunConfig
from engine.distributed import world_size
from engine.errors import UsageError
from engine.io import say


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
    rows = manifest.get("extra", {}).get("batch_rows")
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
        say(f"note: this run's batch of {rows} rows is kept: accumulation {pieces} with {ranks} process(es)")
    return pieces
