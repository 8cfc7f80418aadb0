"""Decides what a launch does: start a new run, resume one, set another aside, or keep one that is finished.

`decide_run` inspects the disk once, on rank 0, before data or model are built, and changes nothing there.
`engine.run.launch` follows its `RunDecision`. `engine.run.directory.open_run` locks the directory, decides again under
the lock (another launch may have come first), and carries the decision out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from engine.checkpoint.manifest import STEP_NAME, load_checkpoint
from engine.checkpoint.store import CheckpointStore
from engine.config import HEADER, ConfigSource, RunConfig, read_source, source_of
from engine.distributed import world_size
from engine.errors import UsageError
from engine.io import print_rank0
from engine.registry import Family
from engine.run.aside import moving_to, require_room
from engine.run.environment import is_sweep_job
from engine.run.files import is_finished, read_identity, read_json, read_yaml
from engine.run.identity import changes
from engine.run.request import RunRequest, request_of, with_run_name
from engine.run.stored import stored_config, with_old_behaviour


@dataclass(frozen=True)
class RunDecision:
    """What a launch does."""

    action: Literal["new", "restart", "resume", "set_aside", "finished"]
    """new: nothing is in the way; restart: a run without a checkpoint begins again in its place; resume: a run
    continues from `checkpoint`; set_aside: a new run, after the one at `path` is renamed; finished: nothing to do. A
    refused launch has no decision: it raises UsageError."""
    path: Path
    """The run directory."""
    reason: str
    """Text printed with the path."""
    checkpoint: Path | None = None
    """The checkpoint to load (not yet verified): the run's own at a resume, another run's for a branch."""
    displaced: str = ""
    """Text: what is in the way and will be set aside."""
    source: ConfigSource | None = None
    """The config to train with; set by `decide_run`."""
    results: Mapping[str, float | None] | None = None
    """The last evaluation of a finished run."""

    @property
    def resumes(self) -> bool:
        """Whether an existing run continues."""
        return self.action == "resume"

    @property
    def step(self) -> int:
        """The step to resume from, 0 for any other action."""
        named = STEP_NAME.fullmatch(self.checkpoint.resolve().name) if self.resumes and self.checkpoint else None
        return int(named[1]) if named else 0

    @property
    def spent(self) -> float:
        """Seconds of training steps before the resume; 0 if an older checkpoint does not record them.

        Raises: UsageError: the checkpoint is damaged.
        """
        if not self.step or self.checkpoint is None:
            return 0.0
        spent = load_checkpoint(self.checkpoint, checksums=False).extra.get("spent")
        return float(spent.get("seconds", 0.0)) if isinstance(spent, Mapping) else 0.0

    @property
    def branch(self) -> Path | None:
        """The checkpoint of another run that this one starts from."""
        return None if self.resumes else self.checkpoint


def decide_run(config: RunConfig, entry: str) -> RunDecision:
    """On rank 0: what this launch does, and the config it trains with (under resume=true the stored one is the base).

    Raises: UsageError if the launch is refused (see `resolve_run`) or a stored config cannot be used.
    """
    config = with_run_name(config)
    request = request_of(config, entry)
    if (finished := _finished_before(config, request)) is not None:
        return replace(finished, source=source_of(config))
    if config.resume == "true":
        read_identity(path := request.resumable(), entry)  # another script's keys would be called unknown
        config = stored_config(path, config)
        request = request_of(config, entry)
    decision = resolve_run(request)
    if config.resume == "auto" and config.resume_from == "latest" and decision.resumes:
        config = with_old_behaviour(config, decision.path)
    return replace(decision, source=source_of(config))


def resumed_config(
    resolved: dict[str, Any], overrides: list[str], choices: dict[str, str | None], family: Family
) -> tuple[str, Any]:
    """(name of the recipe, config) of the run that a command with resume=true resumes, with the command's values.

    `resolved`, `overrides`, `choices`: the command's own, as in `ConfigSource`. Raises: UsageError as in `decide_run`.
    """
    text = f"{HEADER}{{}}\n{OmegaConf.to_yaml(OmegaConf.create(resolved))}"
    source = ConfigSource(text, resolved, overrides, choices=choices, overlay=True)
    decision = decide_run(read_source(family.schema, source), family.entry)
    assert decision.source is not None
    return str(decision.source.config_name), read_source(family.schema, decision.source)


def resolve_run(request: RunRequest) -> RunDecision:
    """What a launch with this request does, given what is on disk now; nothing is locked or changed.

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
        return _resume(request, own or request.resumable(), resume_from or "latest")
    if choice == "auto" and (unfinished := request.unfinished(branch)) is not None:
        return _resume(request, unfinished, "latest", branch)
    return _start(request, branch)


def _resume(request: RunRequest, path: Path, spec: str, branch: Path | None = None) -> RunDecision:
    """The run at `path` resumes from its checkpoint `spec`; one without any checkpoint begins again."""
    stored = read_identity(path, request.entry)
    store = CheckpointStore(path, request.entry)
    if store.latest() is None:  # killed before its first checkpoint
        branch = branch or (Path(stored["branch"]) if stored.get("branch") else None)
        reason = "no checkpoint yet, starting again from " + (str(branch) if branch else "step 0")
        return RunDecision("restart", path, reason, branch)
    checkpoint = store.resolve(spec)
    changed = "" if request.matches(path) else _changes(request, stored)
    reason = f"resuming from {checkpoint.name}" + (f" with changes: {changed}" if changed else "")
    return RunDecision("resume", path, reason, checkpoint)


def _start(request: RunRequest, branch: Path | None) -> RunDecision:
    """A new run; a run at its path is set aside."""
    path = request.path
    require_room(path)
    reason = "new run" + (f", branching off from {branch}" if branch else "")
    if moving_to(path) is not None:
        return RunDecision("set_aside", path, reason, branch, displaced="another run, already half moved")
    if not (path / "identity.json").exists():
        return RunDecision("new", path, reason, branch)
    if request.matches(path):
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

    Skipping is the default in a sweep: the same command resumes a stopped sweep. `max_steps` and `max_seconds` are not
    part of the identity, but with another value the run is of another length.
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
        return None  # results unknown: run it again
    reason = f"done already (step {summary['step']}); skip_finished=false runs it again"
    return RunDecision("finished", path, reason, results=summary["results"])


# --- the batch of a resumed run ---------------------------------------------------------------------------------------


def accumulation(config: RunConfig, decision: RunDecision) -> int:
    """Micro-batches per step of this launch: `config.accumulation`, unless a run whose batch size is set per process
    resumes with another number of processes: then what keeps its global batch. Only reads.

    Raises: UsageError if the processes cannot add up to that batch, or the checkpoint is damaged.
    """
    keys = config.BATCH_KEYS
    if not decision.resumes or decision.checkpoint is None or not keys:
        return config.accumulation
    manifest = load_checkpoint(decision.checkpoint, checksums=False).manifest
    recorded = manifest.get("extra", {}).get("batch_rows")
    rows = _rows_before(decision.path, manifest, keys) if recorded is None else recorded
    if type(rows) is not int or any(manifest["config"].get(key) != getattr(config, key) for key in keys):
        return config.accumulation  # an older checkpoint, or the config sets another batch
    ranks, each = world_size(), int(getattr(config, keys[0]))
    micro_batches, remainder = divmod(rows, each * ranks)
    if remainder:
        most, (own, odd) = rows // each, divmod(rows, ranks * config.accumulation)
        fewer = f"a number of processes that divides {most}" if most > 1 else "one process"
        other = f"another {keys[0]} (another batch)" if odd else f"{keys[0]}={own} (the same batch)"
        raise UsageError(
            f"this run's batch is {rows} rows, and {ranks} processes of {keys[0]}={each} cannot add up to it: choose "
            f"{fewer}, or resume=true and {other}"
        )
    if micro_batches != config.accumulation:
        kept = f"this run's batch of {rows} rows is kept"
        print_rank0(f"note: {kept}: accumulation {micro_batches} with {ranks} process(es)")
    return micro_batches


def _rows_before(folder: Path, manifest: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    """The global batch of a checkpoint that does not record it, from its config and the number of processes then."""
    environment, config = read_json(folder / "environment.json"), manifest.get("config", {})
    if isinstance(rows := environment.get("batch_rows"), int):  # a later resume recorded it, but saved no checkpoint
        return rows
    factors: list[Any] = [environment.get("world_size"), *(config.get(key) for key in keys)]
    if not all(type(factor) is int and factor > 0 for factor in factors):
        print_rank0(f"warning: {folder} does not record how many processes it ran with: its batch may differ now")
        return None
    return int(math.prod(factors))
