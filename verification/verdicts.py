"""What was observed of a config, kept on disk: the same code, config and versions show the same again.

Below `$XDG_CACHE_HOME/loopforge/verdicts` (~/.cache without the variable), one small JSON file for each. A cache that
cannot be read or written is no error: the config is observed again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engine.io import atomic_write_text, read_bytes
from verification.finding import Finding
from verification.tree import sources

FORMAT = 1
MOST = 500
"""Files that are kept; beyond them the oldest go."""
PACKAGES = ("engine", "models", "losses", "tasks", "evaluators", "dataset", "launcher", "verification")
"""Whose sources decide what is observed, besides the scripts."""
LIBRARIES = ("torch", "numpy", "omegaconf", "hydra-core")


@dataclass
class Verdict:
    """What was observed of one config."""

    findings: list[Finding] = field(default_factory=list)
    """Every code that was asked for, at least once; SKIP where nothing could be observed."""
    facts: dict[str, Any] = field(default_factory=dict)
    """train_forward, act_mode_found, encoder_policy, task; empty where no instance could be built."""


def folder() -> Path:
    """Where verdicts are kept. Raises: RuntimeError where nobody is at home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopforge" / "verdicts"


def key_of(script: str, settings: Mapping[str, Any], root: Path) -> str:
    """The name of a verdict: of the script, the settings of the tiny instance, the code below `root`, the versions."""
    content = [FORMAT, script, settings, code(root), platform.python_version(), *map(_version, LIBRARIES)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:40]


@functools.cache
def code(root: Path) -> str:
    """A hash of all sources below `root` that decide what is observed."""
    digest = hashlib.sha256()
    for name, path in sorted(sources(root, PACKAGES).items()):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return library


def load(key: str) -> Verdict | None:
    """The verdict of that name, None where there is none that can be used."""
    try:
        content = json.loads(read_bytes(folder() / f"{key}.json"))
        return Verdict([Finding(**row) for row in content["findings"]], dict(content["facts"]))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        return None


def save(key: str, verdict: Verdict) -> None:
    """Keep a verdict; one of a config that could not be built is not worth it."""
    if not verdict.facts:
        return
    rows = [finding.as_dict() for finding in verdict.findings]
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        atomic_write_text(place / f"{key}.json", json.dumps({"findings": rows, "facts": verdict.facts}))
        files = sorted(place.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in files[: max(0, len(files) - MOST)]:
            path.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        return
