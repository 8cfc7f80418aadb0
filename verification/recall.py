"""A disk cache of results of importing or running code, keyed by question, sources and library versions.

Below `$XDG_CACHE_HOME/loopforge/verdicts` (~/.cache without the variable), a small JSON file for each result. A cache
that cannot be read or written is not an error: the result is computed again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.utils import setup_globals
from omegaconf import OmegaConf

import engine.cli.compose
import engine.registry
from engine.cli.compose import Composed
from engine.io import atomic_write_text, read_bytes
from verification.tree import ADOPTED, OURS, sources

FORMAT = 2
MOST = 4000
"""Most files in the cache; beyond that the older half is deleted."""
LIBRARIES = ("torch", "numpy", "omegaconf", "hydra-core")
MEMORY: dict[str, Any] = {}
"""Results that this process has used."""


def recall(question: Sequence[Any], compute: Callable[[], Any] | None, *, keep_if: Callable[[Any], Any] = bool) -> Any:
    """The cached JSON value for a question about the code of this process; `compute()` is called if there is none.

    Without `compute`, None if there is none. A computed value is stored on disk if `keep_if(value)`.
    """
    name = key_of(question, *trees())
    if name not in MEMORY:
        value = load(name)
        if value is None and compute is None:
            return None
        if value is None and compute is not None and keep_if(value := compute()):
            save(name, value)
        MEMORY[name] = value
    return MEMORY[name]


def folder() -> Path:
    """The folder of the cache. Raises: RuntimeError if there is no home directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopforge" / "verdicts"


def trees() -> list[Path]:
    """The source trees of this process: a judged tree may link to another one and have files of its own."""
    return list(dict.fromkeys([engine.registry.ROOT, *ADOPTED]))


def key_of(question: Sequence[Any], *roots: Path) -> str:
    """The file name of a result: a hash of the question, the code below `roots`, and the versions."""
    content = json.dumps([*question, versions(), *map(code, roots)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:40]


@functools.cache
def code(root: Path) -> str:
    """A hash of all our sources below `root`."""
    digest = hashlib.sha256()
    for name, path in sorted(sources(root, OURS).items()):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def versions() -> str:
    """Versions of this format, of Python, and of the libraries on which the behaviour of our code depends."""
    return " ".join([str(FORMAT), platform.python_version(), *(f"{name} {_version(name)}" for name in LIBRARIES)])


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "missing"


def load(name: str) -> Any:
    """The stored result of that name; None if there is no usable one."""
    try:
        return json.loads(read_bytes(folder() / f"{name}.json"))
    except (OSError, ValueError, RuntimeError):
        return None


def save(name: str, value: Any) -> None:
    """Store a result; errors of the file system are ignored."""
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        atomic_write_text(place / f"{name}.json", json.dumps(value))
        if len(os.listdir(place)) > MOST:
            for path in sorted(place.glob("*.json"), key=lambda path: path.stat().st_mtime)[: MOST // 2]:
                path.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        return


class Compositions(dict[tuple[Any, ...], Composed]):
    """The cache of engine.cli.compose, on disk as well: the same files and choices compose to the same config."""

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key) and isinstance(key, tuple) and (stored := recall(["composed", *key], None)):
            setup_globals()  # registers Hydra's ${now:...}, as composing would have done
            super().__setitem__(key, Composed(OmegaConf.create(stored[0]), *stored[1:]))
        return super().__contains__(key)

    def __setitem__(self, key: tuple[Any, ...], value: Composed) -> None:
        super().__setitem__(key, value)
        recall(["composed", *key], lambda: [OmegaConf.to_container(value.config), value.choices, value.params])


engine.cli.compose.CACHE = Compositions(engine.cli.compose.CACHE)
