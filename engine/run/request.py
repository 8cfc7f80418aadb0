"""What a launch requests, and which runs on disk match it by folder, identity and name.

Everything here only reads. `engine.run.decision` turns a request into a decision.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from engine.checkpoint.store import CheckpointStore
from engine.config import RunConfig, source_of
from engine.errors import UsageError
from engine.fields import value_at
from engine.io import sha256_json, user_path
from engine.run.aside import is_set_aside, moving_to
from engine.run.environment import REPORT, SUFFIX
from engine.run.files import is_finished, read_json
from engine.run.identity import completed, has_key, identity_of, value_before
from engine.run.stored import edited, from_source

C = TypeVar("C", bound=RunConfig)
NAME_LENGTH = 8  # hex digits of the identity in a default run name: enough to tell the runs of one project apart


@dataclass(frozen=True)
class RunRequest:
    """What a launch requests: a run directory (and its time-stamped pattern), an identity, and whether to resume."""

    path: Path
    """The resolved run_dir."""
    identity: Mapping[str, Any]
    entry: str
    pattern: str | None = None
    """The unresolved run_dir: if it contains `${now:...}`, runs of the same identity are found under other times."""
    later: Collection[str] = ()
    """Dotted keys added later: a run stored before them is compared without them."""
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    """Fills in the defaults of an identity."""
    resume: Literal["auto", "true", "false"] = "auto"
    """auto: an unfinished run of this identity resumes from its latest checkpoint; true: the latest checkpoint must
    exist, whether the run is finished or not; false: always a new run."""
    resume_from: str | None = None
    """latest, best or step_N of this run, or the path of any checkpoint: one of another run starts a branch."""

    @property
    def _timed(self) -> str | None:
        return self.pattern if self.pattern and "${now" in self.pattern else None

    def unusable(self, error: OSError) -> UsageError:
        """The one-line error for a run directory that the operating system refuses."""
        place = f"{error.filename}: " if error.filename and Path(error.filename) != self.path else ""
        return UsageError(f"run_dir={self.path} cannot be used ({place}{error.strerror}): choose another run_dir")

    def matches(self, path: Path, branch: Path | None = None) -> bool:
        """Whether `path` is a run of this identity (that started from `branch`, if one is given)."""
        stored = read_json(path / "identity.json")
        if moving_to(path) is not None or (branch and stored.get("branch") != str(branch)):
            return False
        if stored.get("entry") != self.entry:
            return False
        return stored.get("identity") == sha256_json(self.identity) or self.matches_identity(stored.get("config"))

    def matches_identity(self, known: Any) -> bool:
        """Whether the stored identity `known` is this one: the only place where identities are compared.

        The `later` keys that it lacks do not count; `complete` fills in defaults.
        """
        return isinstance(known, dict) and self.complete(known) == self.complete(self.identity_for(known))

    def identity_for(self, known: Mapping[str, Any]) -> Mapping[str, Any]:
        """The identity without the `later` keys that a run with the stored identity `known` lacks."""
        return identity_of(self.identity, without=[key for key in self.later if known and not has_key(known, key)])

    def siblings(self) -> list[Path]:
        """The run directory and those under other times, newest first, without runs that were set aside."""
        places = {self.path} if self.path.is_dir() else set()
        if self._timed:
            times = [Path(name) for name in glob.glob(to_glob(self._timed)) if os.path.isdir(name)]
            places |= {place for place in times if not is_set_aside(place)}
        return sorted(places, key=lambda p: (read_json(p / "status.json").get("time") or "", p.name))[::-1]

    def finished(self) -> Path | None:
        """The newest finished run of this identity, at the path or under other times."""
        return next((place for place in self.siblings() if self.matches(place) and is_finished(place)), None)

    def resumable(self) -> Path:
        """The path itself if it has a checkpoint, else the newest run of this identity that has one.

        Raises: UsageError that names the folder searched, if there is no checkpoint to resume from.
        """
        places = [] if moving_to(self.path) else [self.path]
        for candidate in [*places, *(p for p in self.siblings() if self.matches(p))]:
            if CheckpointStore(candidate, self.entry).latest():
                return candidate
        where = f"in any {to_glob(self._timed)} of this config" if self._timed else f"in {self.path / 'checkpoints'}"
        raise UsageError(f"nothing to resume: no checkpoint {where}; without resume and resume_from a new run starts")

    def unfinished(self, branch: Path | None = None) -> Path | None:
        """The newest unfinished run of this identity."""
        return next((p for p in self.siblings() if self.matches(p, branch) and not is_finished(p)), None)

    def locate(self) -> tuple[Path | None, Path | None]:
        """Resolve a `resume_from` path: (run to resume, None) or (None, checkpoint of another run)."""
        if self.resume_from is None or is_pointer(self.resume_from):
            return None, None
        target = CheckpointStore(self.path, self.entry).resolve(self.resume_from)
        own = [self.path, *(p for p in self.siblings() if self.matches(p))]
        run = next((p for p in own if target.is_relative_to(p.resolve())), None)
        return (run, None) if run else (None, target)


def is_pointer(spec: str) -> bool:
    """Whether `resume_from` names a checkpoint of the run itself, not a path."""
    return spec in ("latest", "best") or re.fullmatch(r"step_\d+", spec) is not None


# --- runs under other times -------------------------------------------------------------------------------------------


def expand_pattern(unresolved: str, key: str = "run_dir") -> str:
    """The value of `key` in the YAML text `unresolved`, with references to other keys replaced by their text.

    `run_dir: out/${run_name}` with `run_name: x_${now:%H}` -> `out/x_${now:%H}`; resolver calls stay.
    """
    config = yaml.safe_load(unresolved) or {}

    def text_of(match: re.Match[str]) -> str:
        node = value_at(config, match[1])
        return match[0] if node is None or isinstance(node, Mapping | list) else str(node)

    pattern = str(config.get(key) or "")
    for _ in range(10):  # references nest a few levels deep; stops at circular ones
        pattern = re.sub(r"\$\{([A-Za-z_][\w.]*)\}", text_of, pattern)
    return pattern


def to_glob(pattern: str) -> str:
    """`runs/${name}_${now:%Y/%H}` -> `runs/*_*/*`: interpolations (nested ones too) become wildcards.

    Candidates are compared by identity afterwards, so a wildcard too many finds no wrong run.
    """

    def wildcards(match: re.Match[str]) -> str:
        return "/".join("\0" * (match[1].count("/") + 1)) if match[1].startswith("now") else "\0"

    count = 1
    while count:  # from the inside out
        pattern, count = re.subn(r"\$\{([^${}]*)\}", wildcards, pattern)
    return glob.escape(pattern).replace("\0", "*")


# --- from a config to its request -------------------------------------------------------------------------------------


def request_of(config: RunConfig, entry: str) -> RunRequest:
    """The request of a launch with `config`. Reads nothing from disk."""
    source = source_of(config)
    typed = {word.lstrip("+").partition("=")[0] for word in source.overrides}
    # A key set on the command line counts, unless its value is what runs did before the key existed.
    later = [
        key
        for key, value in config.before.items()
        if key not in typed or value_at(source.resolved, key) == value_before(value, source.resolved)
    ]
    return RunRequest(
        path=run_dir(config),
        identity=identity(config),
        entry=entry,
        pattern=os.path.expanduser(expand_pattern(source.yaml)) if "${now" in source.yaml else None,
        later=tuple(later),
        complete=partial(completed, schema=type(config)),
        resume=config.resume,
        resume_from=None if config.resume_from == "latest" else config.resume_from,
    )


def identity(config: RunConfig) -> dict[str, Any]:
    """The resolved config without device, logging, budget and launch keys."""
    return identity_of(source_of(config).resolved, without=config.NOT_IDENTITY)


def run_dir(config: RunConfig) -> Path:
    """Where the run writes: `run_dir`, else checkpoints/<project>/<run name>."""
    path = user_path(config.run_dir or f"checkpoints/{config.project_name or 'runs'}/{config.run_name}")
    return path.resolve() if ".." in path.parts else path  # `a/../a` is no longer a path once `a` is set aside


def with_run_name(config: C) -> C:
    """`config` with a run name: a null one becomes `<config name>-<identity>`, the same for the same experiment."""
    source = source_of(config)
    if config.run_name is not None:
        return config
    stem = (source.config_name or "run").removeprefix("cfg_")
    defaults = {field.name: field.default for field in fields(config)}
    # Keys added later are left out at their defaults, so that adding them renamed no run.
    named = {k: value for k, value in identity(config).items() if k not in config.BEFORE or value != defaults[k]}
    digest, suffix = sha256_json(named)[:NAME_LENGTH], os.environ.get(SUFFIX, "")
    current = from_source(config, edited(source, {"run_name": f"{stem}-{digest}{suffix}"}))
    older = {} if run_dir(current).exists() else _older_name(current, stem, suffix)
    return from_source(config, edited(source, older)) if older else current


def _older_name(config: RunConfig, stem: str, suffix: str) -> dict[str, str]:
    """run_name (and run_dir, if needed) of a run of this identity from before its keys, defaults or names changed;
    empty if there is none.

    Besides today's suffix, the job number that earlier versions used is tried.
    """
    report = os.environ.get(REPORT)
    endings = dict.fromkeys([suffix, *([f"_{Path(report).stem}", ""] if report and suffix else [])])
    current, name = str(run_dir(config)), str(config.run_name)
    places = [current] if config.run_dir or config.project_name else [current, f"checkpoints/None/{name}"]
    request = request_of(config, "")
    for place, ending in itertools.product(places, endings):
        tail = "[0-9a-f]" * NAME_LENGTH + glob.escape(ending)
        pattern = glob.escape(place).replace(glob.escape(name), f"{glob.escape(stem)}-{tail}")
        for folder in sorted(glob.glob(pattern)):
            known = read_json(Path(folder, "identity.json")).get("config")
            if not isinstance(known, dict) or (ending != suffix and known.keys() & config.BEFORE.keys()):
                continue
            match = re.search(f"{re.escape(stem)}-[0-9a-f]{{{NAME_LENGTH}}}{re.escape(ending)}", folder)
            if match and request.matches_identity(known):
                return {"run_name": match[0], **({} if place == current else {"run_dir": folder})}
    return {}
