"""What a launch does: start a new run, resume one, set another aside, or keep one that is finished.

`decide_run` inspects the disk once, on rank 0, before data or model are built, and changes nothing there. What follows
(`engine.run.launch`) asks its `RunDecision`. `engine.run.directory.open_run` locks the directory, decides again under
the lock, since another launch may have come first, and carries the decision out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engine.checkpoint.manifest import STEP_NAME, load_checkpoint
from engine.checkpoint.store import CheckpointStore
from engine.config import ConfigSource, RunConfig, source_of
from engine.distributed import world_size
from engine.errors import UsageError
from engine.io import print_rank0
from engine.run.aside import moving_to, require_room
from engine.run.environment import is_sweep_job
from engine.run.files import is_finished, read_identity, read_json, read_yaml
from engine.run.identity import changes
from engine.run.request import RunRequest, request_of, with_run_name
from engine.run.stored import as_it_began, stored_config


@dataclass(frozen=True)
class RunDecision:
    """What a launch is."""

    action: Literal["new", "restart", "resume", "set_aside", "finished"]
    """new: nothing is in the way; restart: a run that wrote no checkpoint begins again in its place; resume: a run
    continues from `checkpoint`; set_aside: a new run, once the one at `path` has been renamed; finished: nothing is to
    be done. A launch that is refused has no decision but a UsageError."""
    path: Path
    """The run directory."""
    reason: str
    """In words: printed with the path."""
    checkpoint: Path | None = None
    """Where the state comes from (not yet verified): the run's own to resume, another run's where this one branches."""
    displaced: str = ""
    """What is in the way and will be set aside, in words."""
    source: ConfigSource | None = None
    """The config to train with, where `decide_run` decided."""
    results: Mapping[str, float | None] | None = None
    """Of a finished run: its last evaluation."""

    @property
    def resumes(self) -> bool:
        """Whether a run continues, steps and all."""
        return self.action == "resume"

    @property
    def step(self) -> int:
        """The step that it resumes from, 0 for every other run."""
        named = STEP_NAME.fullmatch(self.checkpoint.resolve().name) if self.resumes and self.checkpoint else None
        return int(named[1]) if named else 0

    @property
    def spent(self) -> float:
        """Seconds of training steps that it resumes after, 0 where the checkpoint is of a version that kept none.

        Raises: UsageError: the checkpoint is damaged.
        """
        if not self.step or self.checkpoint is None:
            return 0.0
        kept = load_checkpoint(self.checkpoint, checksums=False).extra.get("spent")
        return float(kept.get("seconds", 0.0)) if isinstance(kept, Mapping) else 0.0

    @property
    def branch(self) -> Path | None:
        """The checkpoint of another run that this one begins with."""
        return None if self.resumes else self.checkpoint

    @property
    def starts_fresh(self) -> bool:
        """Whether the weights are new ones."""
        return not self.resumes and self.checkpoint is None


def decide_run(config: RunConfig, entry: str) -> RunDecision:
    """Rank 0: what this launch is, and the config it trains with (under resume=true the stored one is the base).

    Raises: UsageError where the launch is refused: see `resolve_run`; and a stored config that cannot be used.
    """
    config = with_run_name(config)
    request = request_of(config, entry)
    if (finished := _finished_before(config, request)) is not None:
        return replace(finished, source=source_of(config))
    if config.resume == "true":
        path = request.resumable()
        config = stored_config(path, config, run_dir=path)
        request = request_of(config, entry)
    decision = resolve_run(request)
    if config.resume == "auto" and config.resume_from == "latest" and decision.resumes:
        config = as_it_began(config, decision.path)
    return replace(decision, source=source_of(config))


def resolve_run(request: RunRequest) -> RunDecision:
    """What a launch with this request is, by what lies on the disk now; nothing is locked or changed.

    Raises: UsageError: nothing to resume (names the folder searched), a contradiction, a path that cannot be used.
    """
    try:
        return _resolve_run(request)
    except OSError as error:
        raise request.unusable(error) from None


def _resolve_run(request: RunRequest) -> RunDecision:
    choice, resume_from = request.resume, request.resume_from
    if request.path.exists() and not request.path.is_dir():
        raise UsageError(f"run_dir={request.path} is a file: choose another run_dir")
    own, branch = request.locate()
    if branch and choice == "true":
        raise UsageError(
            f"resume=true resumes the run in run_dir, but resume_from={resume_from} is in another run: "
            "leave resume=true out to branch off from it"
        )
    if choice == "true" or (resume_from and not branch and choice == "auto"):
        return _resumed(request, own or request.resumable(), resume_from or "latest")
    if choice == "auto" and (unfinished := request.unfinished(branch)) is not None:
        return _resumed(request, unfinished, "latest", branch)
    return _started(request, branch)


def _resumed(request: RunRequest, path: Path, spec: str, branch: Path | None = None) -> RunDecision:
    """The run at `path` resumes from its checkpoint `spec`; one that never wrote any begins again."""
    stored = read_identity(path, request.entry)
    store = CheckpointStore(path, request.entry)
    if store.latest() is None:  # killed before its first checkpoint
        branch = branch or (Path(stored["branch"]) if stored.get("branch") else None)
        reason = "no checkpoint yet, starting again from " + (str(branch) if branch else "step 0")
        return RunDecision("restart", path, reason, branch)
    checkpoint = store.resolve(spec)
    changed = "" if request.same(path) else _changes(request, stored)
    reason = f"resuming from {checkpoint.name}" + (f" with changes: {changed}" if changed else "")
    return RunDecision("resume", path, reason, checkpoint)


def _started(request: RunRequest, branch: Path | None) -> RunDecision:
    """A new run; what is at its path is set aside."""
    path = request.path
    require_room(path)
    reason = "new run" + (f", branching off from {branch}" if branch else "")
    if moving_to(path) is not None:
        return RunDecision("set_aside", path, reason, branch, displaced="another run, already half moved")
    if not (path / "identity.json").exists():
        return RunDecision("new", path, reason, branch)
    if request.same(path):
        displaced = "a finished run" if is_finished(path) else "an unfinished run of the same config"
    else:
        stored = read_json(path / "identity.json")
        displaced = f"another run: {_changes(request, stored) or 'entry ' + str(stored.get('entry'))}"
    return RunDecision("set_aside", path, reason, branch, displaced=displaced)


def _changes(request: RunRequest, stored: Mapping[str, Any]) -> str:
    known = stored.get("config") or {}
    return changes(known, request.identity_for(known))


def _finished_before(config: RunConfig, request: RunRequest) -> RunDecision | None:
    """The finished run that this launch would repeat, if it should be skipped.

    In a sweep that is the default: the same command resumes a sweep that was stopped. `max_steps` and `max_seconds` are
    no part of the identity, but another value asks for another length.
    """
    skip = is_sweep_job() if config.skip_finished is None else config.skip_finished
    if not skip or config.resume != "auto" or config.resume_from != "latest":
        return None
    path = request.finished()
    stored = {} if path is None else {"max_seconds": None, **read_yaml(path / "config.resolved.yaml")}
    if path is None or any(stored.get(key, ...) != getattr(config, key) for key in ("max_steps", "max_seconds")):
        return None
    summary = read_json(path / "summary.json")
    if not isinstance(summary.get("results"), dict) or "step" not in summary:
        return None  # its results are unknown: it is run again
    reason = f"done already (step {summary['step']}); skip_finished=false runs it again"
    return RunDecision("finished", path, reason, results=summary["results"])


# --- the batch of a run that resumes ----------------------------------------------------------------------------------


def accumulation(config: RunConfig, decision: RunDecision) -> int:
    """Micro-batches per step of this launch: `config.accumulation`, but for a run that resumes with another number of
    processes, where each of them adds rows to the batch: the global batch is the run's. Only reads.

    Raises: UsageError where so many processes cannot make up the batch, or the checkpoint is damaged.
    """
    keys = config.BATCH_KEYS
    if not decision.resumes or decision.checkpoint is None or not keys:
        return config.accumulation
    manifest = load_checkpoint(decision.checkpoint, checksums=False).manifest
    recorded = manifest.get("extra", {}).get("batch_rows")
    rows = _rows_before(decision.path, manifest, keys) if recorded is None else recorded
    if type(rows) is not int or any(manifest["config"].get(key) != getattr(config, key) for key in keys):
        return config.accumulation  # of an earlier version, or another batch is asked for
    ranks, each = world_size(), int(getattr(config, keys[0]))
    pieces, left = divmod(rows, each * ranks)
    if left:
        most, (own, odd) = rows // each, divmod(rows, ranks * config.accumulation)
        fewer = f"a number of processes that divides {most}" if most > 1 else "one process"
        other = f"another {keys[0]} (another batch)" if odd else f"{keys[0]}={own} (the same batch)"
        raise UsageError(
            f"this run's batch is {rows} rows, and {ranks} processes of {keys[0]}={each} cannot add up to it: choose "
            f"{fewer}, or resume=true and {other}"
        )
    if pieces != config.accumulation:
        print_rank0(f"note: this run's batch of {rows} rows is kept: accumulation {pieces} with {ranks} process(es)")
    return pieces


def _rows_before(folder: Path, manifest: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    """The batch of a checkpoint from before it was recorded, by its config and the number of processes of then."""
    environment, config = read_json(folder / "environment.json"), manifest.get("config", {})
    if isinstance(rows := environment.get("batch_rows"), int):  # resumed since, without a further checkpoint
        return rows
    factors: list[Any] = [environment.get("world_size"), *(config.get(key) for key in keys)]
    if not all(type(factor) is int and factor > 0 for factor in factors):
        print_rank0(f"warning: {folder} does not record how many processes it ran with: its batch may differ now")
        return None
    return int(math.prod(factors))
